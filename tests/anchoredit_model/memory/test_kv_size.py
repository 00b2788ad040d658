"""What a turn is said to cost is what its blocks hold."""

from __future__ import annotations

import pytest
import torch

from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.memory.kv_size import kv_size
from anchoredit_model.pipeline import AnchorEditPipeline


@pytest.mark.parametrize(("kv_dtype", "itemsize"), [("auto", 4), ("bfloat16", 2), ("float8_e4m3fn", 1)])
def test_the_bundled_models_blocks_are_as_large_as_said(kv_dtype, itemsize):
    pipeline = AnchorEditPipeline.from_pretrained()
    policy = MemoryPolicy(1, 2, kv_dtype=kv_dtype)
    memory = pipeline.start(torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)), policy)
    for words in ("make it red", "make it big", "make it blue"):
        memory = pipeline.turn(memory, words, steps=1)
    cost = kv_size(pipeline.backbone.transformer.config, policy, 128, 128, itemsize)
    assert pipeline.store.nbytes == cost.visible == 3 * cost.per_turn


def test_wan_in_words():
    cost = kv_size(TransformerConfig.named("14B"), MemoryPolicy(), 1024, 1024, 2)
    assert cost.in_words("VRAM") == "16.8 GB of keys and values in VRAM (5 visible turns of 3.36 GB)"
    assert kv_size(TransformerConfig.named("1.3B"), MemoryPolicy(0, 1), 512, 1024, 1).per_turn == 188_743_680
