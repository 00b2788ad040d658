"""GPU memory requirements follow from the sizes of the networks."""

from __future__ import annotations

import pytest

from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.pipeline import AnchorEditPipeline
from benchmark.__main__ import main as command
from benchmark.cost.memory import rows

GIB = 2**30


def test_bundled_model_holds_the_predicted_bytes():
    pipeline = AnchorEditPipeline.from_pretrained()
    counted = next(rows(pipeline.backbone.transformer.config, MemoryPolicy(), 128, 128))
    assert 2 * counted[1] == sum(
        weight.nbytes for weight in pipeline.backbone.transformer.parameters()
    )  # it is in float32


@pytest.mark.parametrize(
    ("size", "weights", "dtype", "device", "card"),
    [("1.3B", "bfloat16", "bfloat16", "gpu", 8), ("14B", "float8", "float8_e4m3fn", "gpu", 24)],
)
def test_memory_requirement_per_card(size, weights, dtype, device, card, capsys):
    """However many turns a session has, 50 say: a turn sees the anchor and the window."""
    assert len(MemoryPolicy().visible(50)) == 5
    table = {(row[0], row[2], row[3]): row for row in rows(TransformerConfig.named(size), MemoryPolicy(), 1024, 1024)}
    assert table[weights, dtype, device][-1] <= card * GIB
    assert table[weights, dtype, "cpu"][-1] < table[weights, dtype, device][-1]
    assert command(["cost", "memory", "--size", size]) == 0 and capsys.readouterr().out.count(f"| {size} |") == 8
