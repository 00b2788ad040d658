"""The host's guiders, samplers and noise levels, as its own sampling nodes use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

Conditioning = list[Any]  # as on the host's socket: [embedding, options] per entry
FLUX2_SCHEDULER = "flux2"  # the node Flux2Scheduler, which depends on the image's size


@dataclass(frozen=True)
class Branches:
    """Hold the conditions of a turn.

    negative  None without guidance
    middle    of dual guidance: the images without the text; the negative then sees neither
    """

    positive: Conditioning
    negative: Conditioning | None = None
    middle: Conditioning | None = None


def guider_of(patcher, branches: Branches, cfg: float, image_cfg: float | None) -> comfy.samplers.CFGGuider:
    """Return the guider of a turn; `image_cfg` is the second scale of dual guidance."""
    if branches.middle is not None:
        from comfy_extras.nodes_custom_sampler import Guider_DualCFG

        guider = Guider_DualCFG(patcher)
        guider.set_conds(branches.positive, branches.middle, branches.negative)
        guider.set_cfg(cfg, image_cfg)
        return guider
    guider = comfy.samplers.CFGGuider(patcher)
    if branches.negative is None:
        guider.inner_set_conds({"positive": branches.positive})
    else:
        guider.set_conds(branches.positive, branches.negative)
    guider.set_cfg(cfg)
    return guider


def sample(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: Tensor,
    seed: int,
    on_step: Callable[[int, int, Tensor], None],
) -> Tensor:
    """Sample from noise as SamplerCustomAdvanced does, and return the samples of a LATENT on the CPU.

    on_step: called with the step from 0, the clean latents as predicted, and the number of steps.
    """

    def callback(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        on_step(step, steps, x0)

    empty = torch.zeros_like(noise)
    return guider.sample(noise, empty, sampler, sigmas, callback=callback, disable_pbar=True, seed=seed).cpu()


def sampler_of(name: str) -> comfy.samplers.KSAMPLER:
    """Return the host's SAMPLER called `name`."""
    return comfy.samplers.sampler_object(name)


def sigmas_of(patcher, scheduler: str, steps: int, cells: int) -> Tensor:
    """Return noise levels [steps + 1]; the artist's own ModelSampling node counts. `cells`: h * w of the latent."""
    if scheduler == FLUX2_SCHEDULER:
        from comfy_extras.nodes_flux import get_schedule

        return torch.as_tensor(get_schedule(steps, cells))
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)
