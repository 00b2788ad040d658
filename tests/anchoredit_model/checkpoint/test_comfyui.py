"""The bundled model under ComfyUI's names: every weight has its own, and the folded VAE has the same latents."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from anchoredit_model import TINY
from anchoredit_model.checkpoint.comfyui import fold_statistics, read_bundled, wan_vae_name
from anchoredit_model.checkpoint.loading import load_transformer
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.text_encoder import TextEncoder
from anchoredit_model.networks.vae import WEIGHTS_NAME, ImageVAE, decode_frames, encode_moments

# far from those of the bundled VAE
MEAN = torch.linspace(-1.5, 0.8, 16)
STD = torch.linspace(2.9, 0.6, 16)


@pytest.fixture(scope="module")
def bundled():
    return read_bundled(MEAN, STD)


@pytest.fixture(scope="module")
def vae_weights() -> dict[str, torch.Tensor]:
    """The bundled VAE under diffusers' names."""
    return load_file(TINY / "vae" / WEIGHTS_NAME)


def under_diffusers_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert Wan's names by diffusers' own table."""
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers(dict(weights))


def test_vae_names_map_one_to_one(vae_weights):
    renamed = {wan_vae_name(name): torch.tensor(index) for index, name in enumerate(vae_weights)}
    assert len(renamed) == len(vae_weights)
    back = under_diffusers_names(renamed)
    assert {name: int(index) for name, index in back.items()} == {name: i for i, name in enumerate(vae_weights)}


def test_bundled_weights_are_complete_and_unchanged(bundled, vae_weights):
    assert bundled.vae.keys() == {wan_vae_name(name) for name in vae_weights}
    model, edit = load_transformer(TINY / "transformer")
    assert bundled.transformer.keys() == model.state_dict().keys() and bundled.edit == edit
    assert all(torch.equal(bundled.transformer[name], tensor) for name, tensor in model.state_dict().items())
    weights = (bundled.transformer, bundled.vae, bundled.text_encoder)
    assert {tensor.dtype for each in weights for tensor in each.values()} == {torch.float32}


def test_text_encoder_equals_that_of_the_command_line(bundled):
    from transformers import UMT5Config, UMT5EncoderModel

    assert bundled.text_config["dense_act_fn"] == "gelu_pytorch_tanh"  # the only name of it in ComfyUI
    model = UMT5EncoderModel(UMT5Config(**bundled.text_config))
    lacking = model.load_state_dict(bundled.text_encoder, strict=False)
    assert lacking.missing_keys in ([], ["encoder.embed_tokens.weight"]) and not lacking.unexpected_keys
    ours = TextEncoder(model, bundled.vocabulary)
    theirs = TextEncoder.from_pretrained(TINY / "text_encoder")
    for mine, expected in zip(ours.encode(["make it blue", ""]), theirs.encode(["make it blue", ""]), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_folded_vae_equals_the_bundled_one(bundled):
    """Normalised by ComfyUI's statistics, its latents are those that the bundled model was trained on."""
    ours = ImageVAE.from_pretrained(TINY / "vae")
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    latents, decoded = ours.encode(images), ours.decode(ours.encode(images))

    from diffusers import AutoencoderKLWan

    folded = AutoencoderKLWan.from_config(ours.model.config).eval()
    folded.load_state_dict(under_diffusers_names(bundled.vae))
    mean, std = MEAN[:, None, None, None], STD[:, None, None, None]
    moments = encode_moments(folded, images[:, :, None] * 2 - 1)
    found = (moments[:, :16] - mean) / std
    torch.testing.assert_close(found[:, :, 0], latents, atol=1e-4, rtol=1e-4)
    shown = decode_frames(folded, latents[:, :, None] * std + mean)[:, :, 0] / 2 + 0.5
    torch.testing.assert_close(shown.clamp(0, 1), decoded, atol=1e-4, rtol=0)


def test_folding_is_exact_in_the_convolutions_and_keeps_the_rest():
    """In float64, where rounding is no excuse; the variance of the posterior stays as it is."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels = 16
    own_mean, mean = random(channels), random(channels)
    own_std, std = random(channels).exp(), random(channels).exp()
    vae = {
        "conv1.weight": random(2 * channels, 2 * channels, 1, 1, 1),
        "conv1.bias": random(2 * channels),
        "conv2.weight": random(channels, channels, 1, 1, 1),
        "conv2.bias": random(channels),
        "decoder.conv1.bias": random(4),
    }
    folded = fold_statistics(vae, own_mean, own_std, mean, std)
    assert folded.keys() == vae.keys() and folded["decoder.conv1.bias"] is vae["decoder.conv1.bias"]

    def encode(weights, hidden):
        moments = weights["conv1.weight"][:, :, 0, 0, 0] @ hidden + weights["conv1.bias"]
        return moments[:channels], moments[channels:]

    def decode(weights, latent):
        return weights["conv2.weight"][:, :, 0, 0, 0] @ latent + weights["conv2.bias"]

    hidden = random(2 * channels)
    (latent, variance), (folded_latent, folded_variance) = encode(vae, hidden), encode(folded, hidden)
    torch.testing.assert_close((folded_latent - mean) / std, (latent - own_mean) / own_std)
    assert torch.equal(folded_variance, variance)
    torch.testing.assert_close(decode(folded, folded_latent), decode(vae, latent))


def test_previews_have_a_colour_per_channel(bundled):
    assert len(bundled.preview_factors) == 16 and {len(row) for row in bundled.preview_factors} == {3}
    assert len(bundled.preview_offset) == 3
    assert bundled.latent_space == ImageVAE.from_pretrained(TINY / "vae").latent_space
    assert bundled.vae["encoder.conv1.weight"].shape[0] == bundled.vae_width


def test_missing_and_unknown_weights_are_named(tmp_path):
    with pytest.raises(AnchorEditError, match=f"bundled model is missing in {tmp_path}.*Install AnchorEdit again"):
        read_bundled(MEAN, STD, tmp_path)
    shutil.copytree(TINY, tmp_path / "cut")
    (tmp_path / "cut" / "transformer" / "model.safetensors").unlink()
    with pytest.raises(AnchorEditError, match="no .safetensors weights"):
        read_bundled(MEAN, STD, tmp_path / "cut")
    for name in ("encoder.time_embedding.weight", "decoder.up_blocks.0.resnets.0.norm9.gamma", "conv9.bias"):
        with pytest.raises(AnchorEditError, match=f"weight {name}"):
            wan_vae_name(name)
