"""Export: the same model, another sampler, averaged weights, preview colours."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anchoredit_model.checkpoint.loading import load_transformer
from anchoredit_model.checkpoint.saving import save_checkpoint
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from train.config_io import load_config
from train.export import latent_colours
from train.export import run as run_export


def image(folder: Path) -> torch.Tensor:
    pipeline = AnchorEditPipeline.from_pretrained(folder)
    source = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    memory = pipeline.turn(pipeline.start(source), "make it red", seed=3, steps=2)
    return pipeline.image(memory)


@pytest.fixture
def exported(small_model, tmp_path):
    def run(dtype: str, sampler: str = "", average: str = "[]") -> Path:
        changes = {"parts.vae": "vae", "parts.text": "text_encoder", "export.transformer": "transformer"}
        options = [f"{key}={small_model / part}" for key, part in changes.items()]
        options += [f"export.dtype={dtype}", f"export.sampler={sampler}", f"export.average={average}"]
        run_export(load_config("tiny", options), tmp_path / dtype)
        return tmp_path / dtype / "model"

    return run


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))


@pytest.mark.slow
def test_an_export_is_the_same_model(exported, small_model, tmp_path):
    whole, half = exported("float32"), exported("bfloat16")
    expected = image(small_model)
    assert torch.equal(image(whole), expected)
    torch.testing.assert_close(image(half), expected, atol=0.1, rtol=0)
    assert weights(whole) == weights(small_model)
    assert abs(weights(half) / weights(whole) - 0.5) < 0.02  # names and sizes stay
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) for folder in (whole, small_model)]
    assert set(names[0]) - set(names[1]) == {"vae/preview.json"}  # only an export writes it
    assert set(names[1]) <= set(names[0])


@pytest.mark.slow
def test_an_export_may_have_another_sampler(exported, small_model):
    trained = AnchorEditPipeline.from_pretrained(small_model).edit
    other = {"renoise": "euler", "euler": "renoise"}[trained.sampler]
    assert AnchorEditPipeline.from_pretrained(exported("float32", other)).edit == replace(trained, sampler=other)


@pytest.mark.slow
def test_weights_of_several_runs_are_averaged(exported, small_model, tmp_path):
    """With equal weight; other sizes are an error."""
    one, edit = load_transformer(small_model / "transformer")
    other = copy.deepcopy(one)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 3
    save_checkpoint(tmp_path / "other.safetensors", other, other.config, edit)
    made, _ = load_transformer(exported("float32", average=f"[{tmp_path / 'other.safetensors'}] ") / "transformer")
    for (name, weight), expected in zip(made.state_dict().items(), one.state_dict().values()):
        torch.testing.assert_close(weight, expected + 1.5, msg=name)
    with pytest.raises(AnchorEditError, match="tiny/transformer' must have the sizes of the transformer"):
        exported("float32", average=f"[{TINY / 'transformer'}]")


def test_preview_colours_are_the_linear_map_of_a_linear_vae():
    generator = torch.Generator().manual_seed(0)
    factors, offset = torch.randn(16, 3, generator=generator).round(decimals=2), torch.tensor([0.1, -0.2, 0.3])
    latents = torch.randn(4, 16, 6, 8, generator=generator)
    colours = torch.einsum("nchw,cd->ndhw", latents, factors) + offset[:, None, None]  # -1..1 and beyond
    images = torch.nn.functional.interpolate((colours + 1) / 2, scale_factor=8, mode="nearest")
    fitted, shift = latent_colours(latents, images, 8)
    torch.testing.assert_close(torch.tensor(fitted), factors, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(shift), offset, atol=1e-3, rtol=0)
