"""Inputs that several nodes have."""

from __future__ import annotations

from typing import TypeVar

from comfy_api.latest import io

from .base import SessionSocket

T = TypeVar("T", bound=io.Input)

_MASK = (
    "Where the edit may change the image, painted at the source image's size: white changes, black stays bit for bit. "
    "Without it the whole image may change."
)


def advanced(entry: T) -> T:
    """Mark an input that few need; the browser folds it away."""
    entry.extra_dict = {**(entry.extra_dict or {}), "advanced": True}  # 0.3.64 takes it in no constructor
    return entry


def session_input(tooltip: str, extra_dict: dict | None = None) -> io.Input:
    """Return the session on the wire."""
    return SessionSocket.Input("session", tooltip=tooltip, extra_dict=extra_dict)


def model_override(extra_dict: dict | None = None) -> io.Input:
    """Return the optional MODEL that replaces the session's."""
    tooltip = "Replaces the session's MODEL for this turn and those after it: a LoRA, another checkpoint."
    return io.Model.Input("model", optional=True, tooltip=tooltip, extra_dict=extra_dict)


def clip_override(extra_dict: dict | None = None) -> io.Input:
    """Return the optional CLIP that replaces the session's."""
    tooltip = "Replaces the session's CLIP for this turn and those after it."
    return io.Clip.Input("clip", optional=True, tooltip=tooltip, extra_dict=extra_dict)


def instruction_input() -> io.String.Input:
    """Return the instruction of one turn."""
    return io.String.Input(
        "instruction",
        default="",
        multiline=True,
        tooltip="What to change, up to 512 tokens, taken literally. Empty: the image is generated again as it is.",
    )


def seed_input(tooltip: str) -> io.Int.Input:
    """Return the seed of a turn's noise, which the host may change after every run."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def steps_input(default: str) -> io.Int.Input:
    """Return the number of sampler steps; `default` says whose 0 takes."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip=f"The number of sampler steps, 1 to 1000; 0 takes {default}. Time grows with it.",
    )


def cfg_input(default: str) -> io.Float.Input:
    """Return the scale of classifier-free guidance; `default` says whose 0 takes."""
    return io.Float.Input(
        "cfg",
        default=0.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip=f"The classifier-free guidance scale, 1 to 30; 0 takes {default}, 1 is off. Any other value doubles "
        "the time of a turn.",
    )


def sampling_inputs() -> list[io.Input]:
    """Return the inputs that say how a turn is sampled."""
    seed = seed_input("The random seed used for creating the noise, 0 to 2^64 - 1. Each turn gets noise of its own.")
    return [seed, steps_input("the model's own"), cfg_input("the model's own")]


def mask_input(tooltip: str = _MASK, extra_dict: dict | None = None) -> io.Mask.Input:
    """Return the optional mask at the source image's size."""
    return io.Mask.Input("mask", optional=True, tooltip=tooltip, extra_dict=extra_dict)
