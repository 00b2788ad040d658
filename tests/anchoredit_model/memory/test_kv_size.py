"""The bytes announced for a session equal those that its K/V take."""

from __future__ import annotations

import pytest
import torch

from anchoredit_model.config import KVCacheConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.memory.kv_size import kv_size
from anchoredit_model.pipeline import AnchorEditPipeline


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "itemsize"), [("auto", 4), ("bfloat16", 2), ("float8_e4m3fn", 1)])
def test_kv_size_equals_bytes_held_by_the_bundled_model(dtype, itemsize):
    pipeline = AnchorEditPipeline.from_pretrained()
    policy, image = MemoryPolicy(1, 2), torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    memory = pipeline.start(image, policy, kv_cache=KVCacheConfig(dtype=dtype))
    for words in ("make it red", "make it big", "make it blue"):
        memory = pipeline.turn(memory, words, steps=1)
    size = kv_size(pipeline.backbone.config, policy, 128, 128, itemsize)
    assert pipeline.store.nbytes == size.visible == 3 * size.per_turn


def test_kv_size_of_wan_models():
    size = kv_size(TransformerConfig.named("14B"), MemoryPolicy(), 1024, 1024, 2)
    assert size.describe("VRAM") == "16.8 GB of K/V in VRAM (5 visible turns of 3.36 GB)"
    assert kv_size(TransformerConfig.named("1.3B"), MemoryPolicy(0, 1), 512, 1024, 1).per_turn == 188_743_680
