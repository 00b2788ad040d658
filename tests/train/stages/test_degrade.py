"""Each kind of degradation by itself; the same generator gives the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train.stages.degrade import KINDS, DegradationConfig, apply_degradation, compress_jpeg, degrade, sample_degradation

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


def change(settings: DegradationConfig, x: Tensor | None = None) -> Tensor:
    """What a degradation adds to latents [B, F, C, h, w]."""
    x = latents() if x is None else x
    return degrade(x, settings, generator()) - x


def test_latents_stay_unchanged_with_probability_zero():
    assert torch.equal(degrade(latents(), NEVER, generator()), latents())


@pytest.mark.parametrize("kind", LATENT_KINDS)
def test_degradations_repeat_with_the_generator_and_differ_between_frames(kind: str):
    same = latents()[:1, :1].expand(SHAPE)
    added = change(only(kind, growing=False), same)
    assert torch.equal(added, change(only(kind, growing=False), same))
    assert not torch.equal(added, degrade(same, only(kind, growing=False), generator(1)) - same)
    frames = added.flatten(0, 1).flatten(1)
    assert (torch.cdist(frames, frames) + 1e3 * torch.eye(len(frames))).min() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATENT_KINDS)
def test_degradation_grows_from_the_anchor_to_the_last_frame(kind: str):
    x = latents()[:1].repeat(400, 1, 1, 1, 1)[:, :1].expand(-1, 5, -1, -1, -1)
    added = (degrade(x, only(kind), generator()) - x).abs().mean(dim=(0, 2, 3, 4))
    assert (added[1:] > added[:-1]).all() and added[-1] > 2 * added[0]
    spared = degrade(x, only(kind, min_strength=0.0), generator())[:, 0]
    torch.testing.assert_close(spared, x[:, 0], atol=1e-6, rtol=0)


def test_frames_are_degraded_independently():
    hit = sample_degradation((4000, 5, 1, 8, 8), DegradationConfig(p_colour=0.3, p_jpeg=0.2), generator()).hit
    assert 0.28 < hit["colour"].float().mean() < 0.32
    assert 0.18 < hit["jpeg"][:, 1:].float().mean() < 0.22
    assert not hit["jpeg"][:, 0].any() and not hit["round_trip"][:, 0].any()  # the anchor stays unchanged
    both = (hit["colour"] & hit["jpeg"])[:, 1:].float().mean()
    assert abs(both - 0.06) < 0.01  # independent kinds


def test_colour_is_scaled_and_shifted_channel_by_channel():
    x = latents()
    added = change(only("colour", growing=False))
    slope = (added[..., 0, 0] - added[..., 0, 1]) / (x[..., 0, 0] - x[..., 0, 1])  # [B, F, C]
    offset = added - slope[..., None, None] * x
    assert slope.abs().max() < 0.051 and slope.std() > 0.01
    assert (offset - offset.mean(dim=(-2, -1), keepdim=True)).abs().max() < 1e-3
    assert offset.abs().max() < 0.031


def test_the_low_frequency_field_is_smooth_and_small():
    added = change(only("low_frequency"))
    assert 0.005 < added.abs().max() <= 0.06
    assert added.diff(dim=-1).abs().max() < 0.03


@pytest.mark.parametrize("size", [2, 4])
def test_blocks_become_their_mean(size: int):
    settings = only("block", block_sizes=(size,), block_mix=1.0, growing=False, min_strength=1.0)
    x, out = (
        latents(),
        latents() + change(only("block", block_sizes=(size,), block_mix=1.0, growing=False, min_strength=1.0)),
    )
    block = x[..., :size, size : 2 * size].mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(out[..., :size, size : 2 * size], block.expand(-1, -1, -1, size, size))
    odd = x[..., :7, :]  # 7 rows are not whole blocks
    torch.testing.assert_close(degrade(odd, settings, generator()), odd)


def test_laplace_multiplies_by_heavy_tailed_noise():
    x = torch.ones(40, 5, 16, 8, 12)
    n = change(only("laplace", growing=False, min_strength=1.0), x).flatten() / 0.035
    assert abs(n.mean()) < 0.01 and abs(n.abs().mean() - 1) < 0.01  # E|n| of Laplace(0, 1)
    assert abs((n.square().square().mean() / n.square().mean() ** 2) - 6) < 0.5  # its kurtosis


def test_blur_is_a_gaussian_of_three_by_three():
    x = torch.zeros(SHAPE)
    x[..., 3, 5] = 1
    sample = sample_degradation(SHAPE, only("blur", growing=False, min_strength=1.0), generator())
    out = apply_degradation(x, sample, only("blur"))
    side = torch.exp(-0.5 / sample.blur.square())[..., None]
    middle = 1 / (1 + 2 * side).square()
    torch.testing.assert_close(out[..., 3, 5], middle.expand(-1, -1, 16))
    torch.testing.assert_close(out[..., 2, 5], (side * middle).expand(-1, -1, 16))
    torch.testing.assert_close(out[..., 4, 6], (side.square() * middle).expand(-1, -1, 16))
    torch.testing.assert_close(out.sum(dim=(-2, -1)), torch.ones(SHAPE[:3]))


def test_only_the_selected_frames_go_through_the_vae(small_model: Path):
    """A round trip is mixed in by its strength; a JPEG replaces the frame; nothing else changes."""
    from anchoredit_model.networks.vae import ImageVAE

    vae, x = ImageVAE.from_pretrained(small_model / "vae"), latents()
    settings = DegradationConfig(p_round_trip=0.3, p_jpeg=0.3)
    sample = sample_degradation(SHAPE, settings, generator())
    no = dict.fromkeys(KINDS, torch.zeros(SHAPE[:2], dtype=torch.bool))
    trip, jpeg = sample.hit["round_trip"] & ~sample.hit["jpeg"], sample.hit["jpeg"]
    assert trip.any() and jpeg.any()
    out = apply_degradation(x, replace(sample, hit=no | {"round_trip": trip, "jpeg": jpeg}), settings, vae)
    assert torch.equal(out[~trip & ~jpeg], x[~trip & ~jpeg])
    mix = 0.4 * sample.strength[trip][:, None, None, None]
    torch.testing.assert_close(out[trip], torch.lerp(x[trip], vae.encode(vae.decode(x[trip])), mix))
    strength = sample.strength[jpeg]
    files = [compress_jpeg(p, round(95 - 45 * s.item())) for p, s in zip(vae.decode(x[jpeg]), strength, strict=True)]
    torch.testing.assert_close(out[jpeg], vae.encode(torch.stack(files)))
    with pytest.raises(ValueError, match="VAE"):
        apply_degradation(x, sample, settings)


def test_a_jpeg_loses_more_at_lower_quality():
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    image = (ramp + 0.2 * torch.rand(3, 64, 64, generator=generator())).clamp(0, 1)
    losses = [(compress_jpeg(image, quality) - image).abs().mean() for quality in (95, 75, 50)]
    assert losses == sorted(losses) and losses[0] < 0.05
    grey = torch.full((3, 64, 64), 0.5)
    assert (compress_jpeg(grey, 50) - grey).abs().max() < 2 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_degradation():
    settings = replace(DegradationConfig(), p_round_trip=0.0, p_jpeg=0.0)
    there = degrade(latents().cuda(), settings, generator())
    torch.testing.assert_close(there.cpu(), degrade(latents(), settings, generator()), atol=1e-5, rtol=0)
