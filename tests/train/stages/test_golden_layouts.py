"""Golden files of losses may lack what their settings do not use: the negative prompt and the self-forcing mask.

No published number exists for such settings. The loss of a file that lacks a tensor is therefore compared with the
loss of the same file with that tensor present and without effect, through the same checks.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parents[2] / "golden"
NEGATIVE = ("neg_valid", "neg_len")
MASK = ("draw04_rand", "replace_mask", "sf_latents")


@pytest.fixture(scope="module")
def losses():
    """The sibling module with the checks; in importlib mode pytest gives it no name to import it by."""
    spec = importlib.util.spec_from_file_location("golden_losses", Path(__file__).with_name("test_golden_losses.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """The random model, and a file of its forwards that says its sizes."""
    for name in ("a_modelA_state.safetensors", "c_cached_global_A.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    return tmp_path


def read(name):
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        return load_file(FOLDER / f"{name}.safetensors"), file.metadata()


def computed(losses, monkeypatch, folder, name, data, metadata):
    """The loss that the check of a file computes, and the gradient norms of the trained model."""
    found = {}

    def record(golden, loss, model):
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        found["loss"] = loss.detach().float()
        found["gradnorms"] = torch.stack([gradients[key].norm() for key in golden.metadata["grad_param_names"]])

    save_file(data, folder / f"{name}.safetensors", metadata)
    with monkeypatch.context() as patch:
        patch.setattr(losses.Golden, "check", record)
        losses.test_golden_losses(folder / f"{name}.safetensors")
    return found


def without(data, names):
    return {key: tensor for key, tensor in data.items() if key not in names}


@pytest.mark.parametrize("name", ["f_s2_causal_selfforcing", "f_dmd_critic_seed4"])
def test_golden_loss_that_uses_no_negative_prompt_needs_none_in_the_file(losses, folder, name):
    data, metadata = read(name)
    save_file(without(data, NEGATIVE), folder / f"{name}.safetensors", metadata)
    losses.test_golden_losses(folder / f"{name}.safetensors")  # still the published numbers


@pytest.mark.parametrize(
    "name, key, off", [("f_cd_seed3", "guidance", "1.0"), ("f_dmd_generator_seed3", "real_guidance", "0.0")]
)
def test_golden_loss_without_guidance_needs_no_negative_prompt(losses, monkeypatch, folder, name, key, off):
    data, metadata = read(name)
    metadata[key] = off
    expected = computed(losses, monkeypatch, folder, name, data, metadata)
    assert (expected["loss"] - data["loss"]).abs() > losses.LOSS * data["loss"]  # guidance mattered
    data = {key: tensor for key, tensor in data.items() if not key.startswith("grad.")} | expected
    save_file(without(data, NEGATIVE), folder / f"{name}.safetensors", metadata)
    losses.test_golden_losses(folder / f"{name}.safetensors")


@pytest.mark.parametrize("setting", [{"self_forcing_prob": 0.0}, {}])
def test_golden_loss_without_self_forcing_needs_no_mask(losses, monkeypatch, folder, setting):
    name = "f_s2_causal_selfforcing"
    data, metadata = read(name)
    unmasked = data | {
        "draw04_rand": torch.ones_like(data["draw04_rand"]),  # above any probability: no frame is replaced
        "replace_mask": torch.zeros_like(data["replace_mask"]),
        "sf_latents": data["image_latents"].clone(),
    }
    expected = computed(losses, monkeypatch, folder, name, unmasked, metadata)
    assert (expected["loss"] - data["loss"]).abs() > losses.LOSS * data["loss"]  # the mask mattered
    training = json.loads(metadata["training"])
    del training["self_forcing_prob"]
    metadata["training"] = json.dumps(training | setting)
    data = {key: tensor for key, tensor in data.items() if not key.startswith("grad.")} | expected
    save_file(without(data, MASK), folder / f"{name}.safetensors", metadata)
    losses.test_golden_losses(folder / f"{name}.safetensors")
