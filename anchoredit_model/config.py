"""Sizes and settings: what a checkpoint is, and how it wants to be used.

TransformerConfig   the network's sizes; named ones in `TransformerConfig.named`
EditConfig          how a trained checkpoint edits: sampler, guidance, positions, resolution
MemoryPolicy        what the next turn may see, and how its history is kept
KVCacheConfig       where the K/V of what it sees lie, and in which dtype
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from .errors import AnchorEditError
from .samplers import SAMPLERS

T = TypeVar("T", bound="JsonConfig")

HISTORIES = ("stream", "refresh")
KV_DEVICES = ("auto", "gpu", "cpu")
KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "float8_e4m3fn")


@dataclass(frozen=True)
class JsonConfig:
    """Read and write a frozen dataclass as a plain JSON object; unknown keys are errors, missing ones defaults."""

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls: type[T], data: dict[str, Any]) -> T:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise AnchorEditError(
                f"{cls.__name__} does not know the setting {unknown[0]!r}", "Remove it, or update AnchorEdit"
            )
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


@dataclass(frozen=True)
class TransformerConfig(JsonConfig):
    """Hold the sizes of a Wan 2.1 text-to-video transformer (https://arxiv.org/abs/2503.20314).

    Width `dim` is split over `num_heads`; `text_len` rows of `text_dim` are what cross-attention sees per
    frame, rows beyond the text being zero.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def named(cls, name: str) -> TransformerConfig:
        """Return the sizes called `tiny` (ours, runs on a CPU), `1.3B` or `14B` (Wan 2.1's)."""
        sizes = {
            "tiny": cls(dim=256, ffn_dim=1024, num_heads=2, num_layers=8),
            "1.3B": cls(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
            "14B": cls(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
        }
        if name not in sizes:
            raise AnchorEditError(f"unknown model size {name!r}", f"Choose one of {', '.join(sizes)}")
        return sizes[name]


@dataclass(frozen=True)
class EditConfig(JsonConfig):
    """Say how a checkpoint was trained to edit; written beside its weights.

    sampler            name in `samplers.SAMPLERS`: "renoise" for few-step models, "euler" for undistilled ones
    timesteps          of the renoise sampler, descending; 1000 = pure noise
    num_steps          steps of the euler sampler
    shift              flow-matching shift of the euler sampler: s = shift*u / (1 + (shift-1)*u)
    cfg                classifier-free guidance scale g of v_u + g*(v_c - v_u); 1 = off, one forward per step
    temporal_stride    temporal RoPE distance between neighbouring slots
    anchor_prompt      prompt that frame 0 is encoded with: "null" | "first_prompt" | "first_token" (the last two
                       for checkpoints of the published code)
    slot_mode          "bounded": visible frames are numbered 0, 1, 2, ...; "absolute": by turn number
    resolution         side in pixels of the square whose area the model was trained at
    resolution_step    step in pixels of the sides of the aspect-ratio buckets
    max_aspect_ratio   of the longer to the shorter side of a bucket
    max_turns          longest training sequence, source included
    negative_history   the unconditional branch has K/V of its own under the null prompt, as in the published scripts
    """

    sampler: str = "renoise"
    timesteps: tuple[int, ...] = (1000, 750, 500, 250)
    num_steps: int = 50
    shift: float = 1.0
    cfg: float = 1.0
    temporal_stride: int = 4
    anchor_prompt: str = "null"
    slot_mode: str = "bounded"
    resolution: int = 1024
    resolution_step: int = 64
    max_aspect_ratio: float = 4.0
    max_turns: int = 6
    negative_history: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EditConfig:
        """Read the settings of a checkpoint, also one written under the field names of version 0.1."""
        return super().from_json({_FIELDS_OF_0_1.get(name, name): value for name, value in data.items()})

    def __post_init__(self):
        _one_of("sampler", self.sampler, tuple(SAMPLERS))
        _one_of("anchor_prompt", self.anchor_prompt, ("null", "first_prompt", "first_token"))
        _one_of("slot_mode", self.slot_mode, ("bounded", "absolute"))
        timesteps = self.timesteps if isinstance(self.timesteps, tuple) else ()
        if not timesteps or any(not _is_number(time) or not 0 < time <= 1000 for time in timesteps):
            raise AnchorEditError(
                f"timesteps must be numbers above 0 and up to 1000, got {self.timesteps!r}", "Use 1000, 750, 500, 250"
            )
        for name in ("num_steps", "temporal_stride", "resolution", "resolution_step", "max_turns"):
            _at_least(1, name, getattr(self, name))
        for name, remedy in (
            ("shift", "Use 1 (none) to about 8"),
            ("cfg", "Use 1 (off) to about 10"),
            ("max_aspect_ratio", "Use 1 (squares only) to about 4"),
        ):
            if not _is_number(getattr(self, name)):
                raise AnchorEditError(f"{name} must be a finite number, got {getattr(self, name)!r}", remedy)
        if self.shift <= 0:
            raise AnchorEditError(f"shift must be positive, got {self.shift}", "Use 1 (none) to about 8")


_FIELDS_OF_0_1 = {
    "steps": "timesteps",
    "guidance": "cfg",
    "stride": "temporal_stride",
    "anchor_text": "anchor_prompt",
    "slots": "slot_mode",
    "area": "resolution",
    "area_step": "resolution_step",
    "area_ratio": "max_aspect_ratio",
    "turns": "max_turns",
    "second_history": "negative_history",
}


@dataclass(frozen=True)
class KVCacheConfig(JsonConfig):
    """Say where the K/V of visible turns lie, and in which dtype.

    device  "gpu" is where the model runs, "cpu" is system RAM, "auto" is the GPU while the visible K/V fit there
            beside the model; never changes an image
    dtype   what K/V are rounded to when they are written; "auto" leaves them as the model made them
    """

    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self):
        _one_of("K/V device", self.device, KV_DEVICES)
        _one_of("K/V dtype", self.dtype, KV_DTYPES)


@dataclass(frozen=True)
class MemoryPolicy(JsonConfig):
    """Say what the next turn may see, and how its history is kept.

    anchor_frames  the first frames of the session, always visible (the attention sink)
    window         the last frames that are visible, the one being made not counted
    history        "stream": a frame's K/V are written once, when it is committed; "refresh": when the window
                   slides, the visible frames are encoded again from themselves alone
    """

    anchor_frames: int = 1
    window: int = 4
    history: str = "stream"

    def __post_init__(self):
        _one_of("history", self.history, HISTORIES)
        _at_least(0, "anchor_frames", self.anchor_frames)
        _at_least(0, "window", self.window)
        if self.anchor_frames + self.window == 0:
            raise AnchorEditError("anchor_frames 0 with window 0 leave nothing to see", "Set one of them to 1 or more")

    def visible(self, turn: int) -> tuple[int, ...]:
        """Return the numbers of the frames that frame `turn` sees besides itself, in order."""
        anchors = range(min(self.anchor_frames, turn))
        recent = range(max(0, turn - self.window), turn)
        return tuple(sorted({*anchors, *recent}))

    def with_options(self, **options: Any) -> MemoryPolicy:
        """Return a copy in which every option that is not None is replaced."""
        return replace(self, **{key: value for key, value in options.items() if value is not None})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(least: int, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise AnchorEditError(f"{name} must be a whole number, {least} or more, got {value!r}", f"Set {least} or more")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise AnchorEditError(f"{name} must be one of {', '.join(allowed)}, got {value!r}", "Choose one of them")
