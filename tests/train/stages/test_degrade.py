"""Each kind of damage does what it says, where it says, and the same again from the same generator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train.stages.degrade import KINDS, DegradationConfig, apply, compress, degrade, draw

NEVER = DegradationConfig(**{f"p_{kind}": 0.0 for kind in KINDS})
LATENT_KINDS = tuple(kind for kind in KINDS if kind not in ("round_trip", "jpeg"))
SHAPE = (3, 5, 16, 8, 12)  # [B, F, C, h, w]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents() -> Tensor:
    return torch.randn(SHAPE, generator=generator(7))


def only(kind: str, **settings) -> DegradationConfig:
    """One kind, in every frame; a blur of the usual sigma is often too faint to see."""
    return replace(NEVER, **{f"p_{kind}": 1.0, "blur_sigma": 1.5} | settings)


def damage(settings: DegradationConfig, x: Tensor | None = None) -> Tensor:
    """What is added to latents [B, F, C, h, w]."""
    x = latents() if x is None else x
    return degrade(x, settings, generator()) - x


def test_nothing_chosen_is_nothing_done():
    assert torch.equal(degrade(latents(), NEVER, generator()), latents())


@pytest.mark.parametrize("kind", LATENT_KINDS)
def test_one_generator_one_damage_and_every_frame_its_own(kind: str):
    same = latents()[:1, :1].expand(SHAPE)
    added = damage(only(kind, growing=False), same)
    assert torch.equal(added, damage(only(kind, growing=False), same))
    assert not torch.equal(added, degrade(same, only(kind, growing=False), generator(1)) - same)
    frames = added.flatten(0, 1).flatten(1)
    assert (torch.cdist(frames, frames) + 1e3 * torch.eye(len(frames))).min() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATENT_KINDS)
def test_damage_grows_from_the_anchor_to_the_last_frame(kind: str):
    x = latents()[:1].repeat(400, 1, 1, 1, 1)[:, :1].expand(-1, 5, -1, -1, -1)
    added = (degrade(x, only(kind), generator()) - x).abs().mean(dim=(0, 2, 3, 4))
    assert (added[1:] > added[:-1]).all() and added[-1] > 2 * added[0]
    spared = degrade(x, only(kind, least=0.0), generator())[:, 0]
    torch.testing.assert_close(spared, x[:, 0], atol=1e-6, rtol=0)


def test_each_frame_is_hit_with_its_own_probability():
    hit = draw((4000, 5, 1, 8, 8), DegradationConfig(p_colour=0.3, p_jpeg=0.2), generator()).hit
    assert 0.28 < hit["colour"].float().mean() < 0.32
    assert 0.18 < hit["jpeg"][:, 1:].float().mean() < 0.22
    assert not hit["jpeg"][:, 0].any() and not hit["round_trip"][:, 0].any()  # the anchor is what was given
    both = (hit["colour"] & hit["jpeg"])[:, 1:].float().mean()
    assert abs(both - 0.06) < 0.01  # one says nothing about the other


def test_colour_is_scaled_and_moved_channel_by_channel():
    x = latents()
    added = damage(only("colour", growing=False))
    slope = (added[..., 0, 0] - added[..., 0, 1]) / (x[..., 0, 0] - x[..., 0, 1])  # [B, F, C]
    offset = added - slope[..., None, None] * x
    assert slope.abs().max() < 0.051 and slope.std() > 0.01
    assert (offset - offset.mean(dim=(-2, -1), keepdim=True)).abs().max() < 1e-3
    assert offset.abs().max() < 0.031


def test_the_low_frequency_field_is_smooth_and_small():
    added = damage(only("low_frequency"))
    assert 0.005 < added.abs().max() <= 0.06
    assert added.diff(dim=-1).abs().max() < 0.03


@pytest.mark.parametrize("size", [2, 4])
def test_blocks_become_their_mean(size: int):
    settings = only("block", block_sizes=(size,), block_mix=1.0, growing=False, least=1.0)
    x, out = latents(), latents() + damage(only("block", block_sizes=(size,), block_mix=1.0, growing=False, least=1.0))
    block = x[..., :size, size : 2 * size].mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(out[..., :size, size : 2 * size], block.expand(-1, -1, -1, size, size))
    odd = x[..., :7, :]  # 7 rows are not whole blocks
    torch.testing.assert_close(degrade(odd, settings, generator()), odd)


def test_laplace_multiplies_by_a_heavy_tailed_law():
    x = torch.ones(40, 5, 16, 8, 12)
    n = damage(only("laplace", growing=False, least=1.0), x).flatten() / 0.035
    assert abs(n.mean()) < 0.01 and abs(n.abs().mean() - 1) < 0.01  # E|n| of Laplace(0, 1)
    assert abs((n.square().square().mean() / n.square().mean() ** 2) - 6) < 0.5  # its kurtosis


def test_blur_is_a_gaussian_of_three_by_three():
    x = torch.zeros(SHAPE)
    x[..., 3, 5] = 1
    drawn = draw(SHAPE, only("blur", growing=False, least=1.0), generator())
    out = apply(x, drawn, only("blur"))
    side = torch.exp(-0.5 / drawn.blur.square())[..., None]
    middle = 1 / (1 + 2 * side).square()
    torch.testing.assert_close(out[..., 3, 5], middle.expand(-1, -1, 16))
    torch.testing.assert_close(out[..., 2, 5], (side * middle).expand(-1, -1, 16))
    torch.testing.assert_close(out[..., 4, 6], (side.square() * middle).expand(-1, -1, 16))
    torch.testing.assert_close(out.sum(dim=(-2, -1)), torch.ones(SHAPE[:3]))


def test_the_vae_sees_the_chosen_frames_alone(small_model: Path):
    """A round trip is mixed in by its strength; a JPEG takes the frame's place; nothing else changes."""
    from anchoredit_model.networks.vae import ImageVAE

    vae, x = ImageVAE.from_pretrained(small_model / "vae"), latents()
    settings = DegradationConfig(p_round_trip=0.3, p_jpeg=0.3)
    drawn = draw(SHAPE, settings, generator())
    no = dict.fromkeys(KINDS, torch.zeros(SHAPE[:2], dtype=torch.bool))
    trip, jpeg = drawn.hit["round_trip"] & ~drawn.hit["jpeg"], drawn.hit["jpeg"]
    assert trip.any() and jpeg.any()
    out = apply(x, replace(drawn, hit=no | {"round_trip": trip, "jpeg": jpeg}), settings, vae)
    assert torch.equal(out[~trip & ~jpeg], x[~trip & ~jpeg])
    mix = 0.4 * drawn.strength[trip][:, None, None, None]
    torch.testing.assert_close(out[trip], torch.lerp(x[trip], vae.encode(vae.decode(x[trip])), mix))
    strength = drawn.strength[jpeg]
    files = [compress(p, round(95 - 45 * s.item())) for p, s in zip(vae.decode(x[jpeg]), strength, strict=True)]
    torch.testing.assert_close(out[jpeg], vae.encode(torch.stack(files)))
    with pytest.raises(ValueError, match="VAE"):
        apply(x, drawn, settings)


def test_a_jpeg_loses_more_at_lower_quality():
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    image = (ramp + 0.2 * torch.rand(3, 64, 64, generator=generator())).clamp(0, 1)
    losses = [(compress(image, quality) - image).abs().mean() for quality in (95, 75, 50)]
    assert losses == sorted(losses) and losses[0] < 0.05
    grey = torch.full((3, 64, 64), 0.5)
    assert (compress(grey, 50) - grey).abs().max() < 2 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same_damage():
    settings = replace(DegradationConfig(), p_round_trip=0.0, p_jpeg=0.0)
    there = degrade(latents().cuda(), settings, generator())
    torch.testing.assert_close(there.cpu(), degrade(latents(), settings, generator()), atol=1e-5, rtol=0)
