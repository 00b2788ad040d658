"""A turn's noise and sampler as NOISE and SAMPLER of the host's own sampling nodes."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.samplers
from torch import Tensor

from ....anchoredit_model.noise import turn_generator, turn_noise
from ....anchoredit_model.samplers import SAMPLERS, Step
from ..latent_space import LatentSpace


class TurnNoise:
    """NOISE: the first sample of a turn's own generator."""

    def __init__(self, seed: int, turn: int, space: LatentSpace):
        self.seed = seed
        self.turn = turn
        self.space = space

    def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
        """Return noise [1, C, (1,) h, w]."""
        return next(self.samples(latent["samples"]))

    def samples(self, like: Tensor) -> Iterator[Tensor]:
        """Yield all noise of the turn, each of the shape [1, C, (1,) h, w] of `like`."""
        shape = self.space.without_frame_axis(like)[0].shape
        noises = turn_noise(shape, turn_generator(self.seed, self.turn))
        return (self.space.with_frame_axis(noise[None]) for noise in noises)


def turn_sampler(name: str, noise: TurnNoise) -> comfy.samplers.KSAMPLER:
    """Return the SAMPLER that runs a sampler of `anchoredit_model.samplers` in the host's loop."""
    return comfy.samplers.KSAMPLER(_TurnSampler(SAMPLERS[name].step, noise))


class _TurnSampler:
    def __init__(self, step: Step, noise: TurnNoise):
        self.step = step
        self.noise = noise

    def __call__(self, model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
        """Sample x0 from x [1, C, 1, h, w] at the noise level sigmas[0]; sigmas [n + 1] end with 0."""
        noise = self.noise.samples(x)
        next(noise)  # which is x
        levels = sigmas.tolist()
        for number, (sigma, next_sigma) in enumerate(zip(levels, levels[1:], strict=False)):
            x0 = model(x, sigmas[number].expand(len(x)), **(extra_args or {}))
            if callback is not None:
                at = sigmas[number]
                callback({"i": number, "x": x, "denoised": x0, "sigma": at, "sigma_hat": at})
            x = self.step(x, x0, sigma, next_sigma, noise)
        return x
