"""Degradation of histories in latent space, and through the VAE.

At inference a turn sees images that the model made. Stage 2 degrades the true history in the same ways - colour drift,
lost texture, an image file - more so the later the frame, while the target stays the true edit. Kinds, order and
strengths are those of the published code (https://github.com/xuhang07/AnchorEdit, trainer/multi_turn_i2v.py); JPEG,
which the paper names and the code lacks, is added to the round trip through the VAE.

`degrade` samples and applies; the sample is a value of its own (`DegradationSample`), so that the same degradation can
be repeated. Everything runs on the whole batch, each frame with its own random numbers, except the VAE, which processes
only the selected frames.

Shapes: B batch, F frames, C latent channels, h w latent size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchoredit_model.images import to_pil, to_tensor

if TYPE_CHECKING:
    from anchoredit_model.networks.vae import ImageVAE

KINDS = ("round_trip", "jpeg", "colour", "low_frequency", "block", "laplace", "blur")
_FIELD_CELL = 16  # latent positions per cell of the low-frequency field
_LOG_EPS = 1e-7  # keeps the logarithm of the Laplace distribution finite
_MIN_BLUR = 0.1  # sigma


@dataclass(frozen=True)
class DegradationConfig:
    """Configure the probability of each kind, per frame, and its size at strength 1.

    The strength of a frame is uniform between `min_strength` and a bound that grows from `min_strength` at the anchor
    to 1 at the last frame; without `growing` the bound is 1 everywhere. Round trip and JPEG leave the anchor unchanged.
    """

    p_round_trip: float = 0.1
    p_jpeg: float = 0.1
    p_colour: float = 0.2
    p_low_frequency: float = 0.2
    p_block: float = 0.1
    p_laplace: float = 0.1
    p_blur: float = 0.1
    growing: bool = True
    min_strength: float = 0.15
    round_trip_mix: float = 0.4  # share of the round trip's result
    jpeg_quality: tuple[float, float] = (95.0, 50.0)  # at strength 0 and 1
    colour_scale: float = 0.05
    colour_bias: float = 0.03
    low_frequency_amplitude: float = 0.06
    block_sizes: tuple[int, ...] = (2, 4)
    block_mix: float = 0.5
    laplace_scale: float = 0.035
    blur_sigma: float = 0.45


@dataclass(frozen=True, eq=False)
class DegradationSample:
    """Hold the random numbers of one degradation.

    strength     [B, F], 0..1
    hit          kind -> [B, F] bool: the frames that it degrades
    scale, bias  [B, F, C], -1..1, of the colour shift
    field        [B, F, C, n, m], -1..1, coarse, with `amplitude` [B, F], 0..1
    block        [B, F] long, index into `block_sizes`
    laplace      [B, F, C, h, w], 0..1
    blur         [B, F], sigma of the blur
    """

    strength: Tensor
    hit: dict[str, Tensor]
    scale: Tensor
    bias: Tensor
    field: Tensor
    amplitude: Tensor
    block: Tensor
    laplace: Tensor
    blur: Tensor


def degrade(
    latents: Tensor, settings: DegradationConfig, generator: torch.Generator, vae: ImageVAE | None = None
) -> Tensor:
    """Return degraded copies of latents [B, F, C, h, w]; `vae` is needed unless its two kinds have probability 0.

    Random numbers are sampled on the generator's device: a CPU generator gives the same ones everywhere.
    """
    return apply_degradation(latents, sample_degradation(latents.shape, settings, generator), settings, vae)


def sample_degradation(shape: torch.Size, settings: DegradationConfig, generator: torch.Generator) -> DegradationSample:
    """Sample the random numbers for latents of shape [B, F, C, h, w]."""
    batch, frames, channels, height, width = shape
    device = generator.device

    def uniform(*dims: int) -> Tensor:
        return torch.rand(batch, frames, *dims, generator=generator, device=device)

    position = torch.linspace(0, 1, frames, device=device) if settings.growing else torch.ones(frames, device=device)
    hit = {kind: uniform() < getattr(settings, f"p_{kind}") for kind in KINDS}
    for kind in ("round_trip", "jpeg"):
        hit[kind][:, 0] = False
    return DegradationSample(
        strength=settings.min_strength + (1 - settings.min_strength) * position * uniform(),
        hit=hit,
        scale=2 * uniform(channels) - 1,
        bias=2 * uniform(channels) - 1,
        field=2 * uniform(channels, *(max(2, side // _FIELD_CELL) for side in (height, width))) - 1,
        amplitude=uniform(),
        block=torch.randint(len(settings.block_sizes), (batch, frames), generator=generator, device=device),
        laplace=uniform(channels, height, width),
        blur=_MIN_BLUR + (settings.blur_sigma - _MIN_BLUR) * uniform(),
    )


@torch.no_grad()
def apply_degradation(
    latents: Tensor, sample: DegradationSample, settings: DegradationConfig, vae: ImageVAE | None = None
) -> Tensor:
    """Return latents [B, F, C, h, w] with a sampled degradation; float32, on the latents' device."""
    x = latents.float()
    device = x.device
    strength = sample.strength.to(device)
    # a kind's strength is 0 in frames that it does not hit
    hit = {kind: strength * mask.to(device) for kind, mask in sample.hit.items()}
    if (sample.strength * (sample.hit["round_trip"] | sample.hit["jpeg"])).any():
        x = through_vae(x, hit["round_trip"], hit["jpeg"], settings, vae)
    x = shift_colour(
        x,
        settings.colour_scale * _frames(hit["colour"]) * _channels(sample.scale.to(device)),
        settings.colour_bias * _frames(hit["colour"]) * _channels(sample.bias.to(device)),
    )
    amplitude = settings.low_frequency_amplitude * hit["low_frequency"] * sample.amplitude.to(device)
    x = add_field(x, amplitude, sample.field.to(device))
    block = sample.block.to(device)
    for index, size in enumerate(settings.block_sizes):
        x = average_blocks(x, settings.block_mix * hit["block"] * (block == index), size)
    x = multiply_laplace(x, settings.laplace_scale * hit["laplace"], sample.laplace.to(device))
    return blur(x, hit["blur"], sample.blur.to(device))


def shift_colour(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return x * (1 + scale) + bias, each [B, F, C, 1, 1]."""
    return x * (1 + scale) + bias


def add_field(x: Tensor, amplitude: Tensor, field: Tensor) -> Tensor:
    """Add a smooth field: coarse values [B, F, C, n, m], interpolated, times amplitude [B, F]."""
    smooth = F.interpolate(field.flatten(0, 1), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return x + _frames(amplitude) * smooth.unflatten(0, x.shape[:2])


def average_blocks(x: Tensor, mix: Tensor, size: int) -> Tensor:
    """Blend in, by mix [B, F], the mean of every block of size * size; do nothing if it does not divide the frame."""
    height, width = x.shape[-2:]
    if height % size or width % size:
        return x
    means = F.avg_pool2d(x.flatten(0, 1), size)
    blocks = F.interpolate(means, size=(height, width), mode="nearest").unflatten(0, x.shape[:2])
    return torch.lerp(x, blocks, _frames(mix))


def multiply_laplace(x: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
    """Return x * (1 + scale * n), n of the Laplace distribution; scale [B, F], uniform 0..1 shaped like x."""
    u = uniform - 0.5
    return x * (1 - _frames(scale) * u.sign() * torch.log1p(-2 * u.abs() + _LOG_EPS))


def blur(x: Tensor, mix: Tensor, sigma: Tensor) -> Tensor:
    """Blend in, by mix [B, F], a 3 * 3 Gaussian blur of sigma [B, F] latent positions, zero beyond the edge."""
    side = _frames(torch.exp(-0.5 / sigma.square()))  # weight of the neighbours, relative to the centre
    wide = F.pad(x, (1, 1))
    blurred = (x + side * (wide[..., :-2] + wide[..., 2:])) / (1 + 2 * side)
    tall = F.pad(blurred, (0, 0, 1, 1))
    blurred = (blurred + side * (tall[..., :-2, :] + tall[..., 2:, :])) / (1 + 2 * side)
    return torch.lerp(x, blurred, _frames(mix))


def through_vae(
    x: Tensor, round_trip: Tensor, jpeg: Tensor, settings: DegradationConfig, vae: ImageVAE | None
) -> Tensor:
    """Decode and encode the frames whose strength [B, F] for either kind is above 0.

    A round trip is blended in by its strength; a JPEG, whose quality falls with strength, replaces the frame.
    """
    if vae is None:
        raise ValueError("round trip and JPEG need the VAE: pass it, or set their probabilities to 0")
    chosen = (round_trip > 0) | (jpeg > 0)
    images = vae.decode(x[chosen])
    best, worst = settings.jpeg_quality
    for index, strength in enumerate(jpeg[chosen].tolist()):
        if strength > 0:
            images[index] = compress_jpeg(images[index], round(best + (worst - best) * strength))
    mix = torch.where(jpeg > 0, 1.0, settings.round_trip_mix * round_trip)[chosen]
    x = x.clone()
    x[chosen] = torch.lerp(x[chosen], vae.encode(images).to(x), mix[:, None, None, None])
    return x


def compress_jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress an image [3, H, W] in 0..1 as JPEG of a quality 1..95 and decode it."""
    file = io.BytesIO()
    to_pil(image.cpu()).save(file, "JPEG", quality=quality)
    return to_tensor(Image.open(file)).to(image)


def _frames(value: Tensor) -> Tensor:
    """Reshape [B, F] to [B, F, 1, 1, 1]."""
    return value[..., None, None, None]


def _channels(value: Tensor) -> Tensor:
    """Reshape [B, F, C] to [B, F, C, 1, 1]."""
    return value[..., None, None]
