"""The 2-D VAE gives stock diffusers' numbers on one frame, and its files are stock files."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKLWan

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.vae import WEIGHTS_NAME, ImageVAE, video_state_dict


def small_wan(seed: int = 0) -> AutoencoderKLWan:
    """Wan 2.1's shape, narrow, with statistics that are not neutral."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(base_dim=8, latents_mean=[0.01 * i for i in range(16)], latents_std=[0.1] * 16).eval()


@pytest.fixture
def stock() -> AutoencoderKLWan:
    return small_wan()


@pytest.fixture
def vae() -> ImageVAE:
    return ImageVAE(small_wan())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stock_encode(stock: AutoencoderKLWan, images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(stock.config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(stock.config.latents_std).view(1, -1, 1, 1)
    return (stock.encode(images.unsqueeze(2) * 2 - 1).latent_dist.mode().squeeze(2) - mean) / std


@torch.no_grad()
def stock_decode(stock: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(stock.config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(stock.config.latents_std).view(1, -1, 1, 1)
    return stock.decode((latents * std + mean).unsqueeze(2)).sample.squeeze(2) / 2 + 0.5


def test_equals_stock_diffusers_on_one_frame(stock, vae, images):
    latents = vae.encode(images)
    torch.testing.assert_close(latents, stock_encode(stock, images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents), stock_decode(stock, latents), atol=1e-5, rtol=1e-5)
    assert latents.shape == (2, vae.latent_channels, 40 // vae.spatial_factor, 64 // vae.spatial_factor)
    assert latents.std() > 0.1  # otherwise equality says nothing


def test_saves_the_stock_files_unchanged(stock, vae, images, tmp_path):
    vae.save_pretrained(tmp_path)
    again = AutoencoderKLWan.from_pretrained(tmp_path).eval()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.latents_mean == stock.config.latents_mean
    loaded = ImageVAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images), vae.encode(images))
    assert video_state_dict(loaded.model).keys() == stock.state_dict().keys()


def test_stores_bfloat16(vae, images, tmp_path):
    vae.save_pretrained(tmp_path, torch.bfloat16)
    assert AutoencoderKLWan.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    narrow = ImageVAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (narrow.dtype, narrow.encode(images).dtype) == (torch.bfloat16, torch.float32)
    wide = ImageVAE.from_pretrained(tmp_path)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(narrow.encode(images), wide.encode(images), atol=0.1, rtol=0.1)


def test_images_of_a_batch_are_independent(vae, images):
    together, latents = vae.encode(images), vae.encode(images[1:])
    torch.testing.assert_close(together[1:], latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(together)[1:], vae.decode(latents), atol=1e-5, rtol=1e-5)


def test_tiles_are_those_of_diffusers(stock, vae):
    image = torch.rand(1, 3, 16, 264, generator=torch.Generator().manual_seed(2))
    vae.enable_tiling()
    stock.enable_tiling()
    latents = vae.encode(image)
    torch.testing.assert_close(latents, stock_encode(stock, image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents), stock_decode(stock, latents), atol=1e-5, rtol=1e-5)


def test_decoded_images_are_clamped(vae):
    decoded = vae.decode(1e4 * torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(3)))
    assert decoded.shape == (1, 3, 16, 16)
    assert decoded.min() >= 0 and decoded.max() <= 1


@pytest.mark.parametrize("shape", [(1, 3, 20, 16), (1, 4, 16, 16), (3, 16, 16)])
def test_wrong_sizes_are_named(vae, shape):
    with pytest.raises(AnchorEditError, match=str(shape[-2])):
        vae.encode(torch.zeros(shape))


def test_bad_folders_are_named(vae, tmp_path):
    with pytest.raises(AnchorEditError, match="nowhere"):
        ImageVAE.from_pretrained(tmp_path / "nowhere")
    vae.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS_NAME
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AnchorEditError, match="damaged"):
        ImageVAE.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config = tmp_path / "config.json"
    settings = json.loads(config.read_text())
    for wrong in ({"base_dim": 16}, {"base_dim": "x"}, {"latents_mean": [0.0] * 3}):
        config.write_text(json.dumps({**settings, **wrong}))
        with pytest.raises(AnchorEditError, match="does not fit"):
            ImageVAE.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(AnchorEditError, match="not JSON"):
        ImageVAE.from_pretrained(tmp_path)


@pytest.mark.slow
def test_import_needs_no_diffusers():
    code = "import sys; sys.modules['diffusers'] = None; import anchoredit_model.networks.vae"
    subprocess.run([sys.executable, "-c", code], check=True)
