"""Trained parts, put together, are the model that they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchoredit_model.pipeline import AnchorEditPipeline
from train.export import main


def picture(folder: Path) -> torch.Tensor:
    pipeline = AnchorEditPipeline.from_pretrained(folder)
    source = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    memory = pipeline.turn(pipeline.start(source), "make it red", seed=3, steps=2)
    return pipeline.picture(memory)


@pytest.fixture
def exported(small_model, tmp_path):
    def run(dtype: str) -> Path:
        out = tmp_path / dtype
        parts = {"transformer": "transformer", "vae": "vae", "text": "text_encoder"}
        asked = [word for name, part in parts.items() for word in (f"--{name}", str(small_model / part))]
        main([*asked, "--out", str(out), "--dtype", dtype])
        return out

    return run


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))


def test_an_export_is_the_same_model(exported, small_model, tmp_path):
    whole, half = exported("float32"), exported("bfloat16")
    expected = picture(small_model)
    assert torch.equal(picture(whole), expected)
    torch.testing.assert_close(picture(half), expected, atol=0.1, rtol=0)
    assert weights(whole) == weights(small_model)
    assert abs(weights(half) / weights(whole) - 0.5) < 0.02  # names and sizes stay
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) for folder in (whole, small_model)]
    assert names[0] == names[1]
