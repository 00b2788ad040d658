"""The studio as a source of edit sessions: rendered on demand, the same on every machine.

    parts = studio_parts(ProceduralConfig(turns=6, height=128, width=128, seed=1), sessions=4096)

Every edit has instructions in all languages, so a session can be learned in any of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import studio
from anchoredit_model.errors import AnchorEditError
from studio.instructions import KINDS, LANGUAGES, phrase
from studio.render import compiled_layers, render
from studio.sessions import sample_sessions

from .session import EditSession, Problems, to_bytes

_BATCH = 64  # sessions rendered together
_SEED_STEP = 1_000_003  # between the sequences of two seeds
_SOURCES = [Path(studio.__file__).with_name(name) for name in ("scene.py", "instructions.py", "instructions.json")]
_SOURCES += [Path(studio.__file__).with_name(name) for name in ("sessions.py", "render.py")] + [Path(__file__)]


@dataclass(frozen=True)
class ProceduralConfig:
    """Configure the sessions.

    With `star` every edit starts from the source, else from the image before. `shares` says how often a kind of edit
    is sampled, relative to 1.
    """

    turns: int
    height: int = 128
    width: int = 128
    seed: int = 1
    star: bool = False
    shares: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        for kind, share in self.shares:
            if kind not in KINDS or not share > 0:
                raise AnchorEditError(
                    f"shares must be positive numbers of kinds of edits, got {share:g} for {kind!r}",
                    f"Give more than 0, for some of {', '.join(KINDS)}",
                )
        if min(self.turns, self.height, self.width) < 1:
            raise AnchorEditError(
                f"turns, height and width must be 1 or more, got {self.turns}, {self.height} and {self.width}",
                "Give 1 or more",
            )

    def batch_seed(self, number: int) -> int:
        """Return the seed of one batch of sessions."""
        return self.seed * _SEED_STEP + number


@dataclass(frozen=True)
class StudioPart:
    """Hold sessions `start` to `stop` of the studio with these settings."""

    settings: ProceduralConfig
    start: int
    stop: int
    device: str = "cpu"
    compiled: bool = False

    @property
    def name(self) -> str:
        """Return the layout, seed and first session."""
        return f"studio-{'star' if self.settings.star else 'chain'}-{self.settings.seed}-{self.start:07d}"

    @property
    def fingerprint(self) -> str:
        """Return a hash of the settings and of the source files: another studio is another source."""
        digest = hashlib.sha256(repr((self.settings, self.start, self.stop)).encode())
        for path in _SOURCES:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def sessions(self, problems: Problems) -> Iterator[EditSession]:
        """Yield the sessions of this part, in order; they have no problems."""
        settings = self.settings
        layers = compiled_layers() if self.compiled else None
        for start in range(self.start, self.stop, _BATCH):
            count = min(_BATCH, self.stop - start)
            seed = settings.batch_seed(start)
            generator = torch.Generator().manual_seed(seed)
            sampled = sample_sessions(
                count, settings.turns, generator, star=settings.star, shares=dict(settings.shares)
            )
            size = settings.height, settings.width
            frames = [to_bytes(render(scenes.to(self.device), *size, layers)).cpu() for scenes in sampled.scenes]
            rng = random.Random(seed)
            for number in range(count):
                edits = [step[number] for step in sampled.edits]
                texts = tuple({language: phrase(edit, rng, language) for language in LANGUAGES} for edit in edits)
                images = torch.stack([frame[number] for frame in frames])
                yield EditSession(f"studio_{settings.seed}_{start + number:07d}", images, texts)


def studio_parts(
    settings: ProceduralConfig, sessions: int, per_part: int = 4 * _BATCH, device: str = "cpu", compiled: bool = False
) -> list[StudioPart]:
    """Return the first `sessions` sessions as a source; `compiled`: see `render.compiled_layers`.

    Read them without worker processes if they are rendered on a GPU or by compiled loops.
    """
    starts = range(0, sessions, per_part)
    return [StudioPart(settings, start, min(start + per_part, sessions), device, compiled) for start in starts]
