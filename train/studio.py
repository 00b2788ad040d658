"""The studio: an endless, seeded source of edit sessions of which everything is known.

A session is a scene, a list of edits and a picture for every state. Everything is drawn from a seed: the same
seed gives the same sessions on every machine (scenes and words are sampled on the CPU; pictures are drawn on
the device asked for).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .instructions import KINDS, Edit, phrase, sample_edit
from .render import render
from .scene import COLUMN, FACTS, Scenes, sample_scenes

# Slots of an instruction, for teaching a text encoder: the kind, and the new or named value of each fact.
INSTRUCTION_SLOTS: dict[str, int] = {
    "kind": len(KINDS),
    **{name: len(values) for name, values in FACTS.items()},
    "removed from": len(FACTS),
    "old object": max(len(values) for values in FACTS.values()),
}


@dataclass(frozen=True)
class Sessions:
    """N sessions of T edits: `scenes[0]` the sources, `scenes[t]` the truth after edit t."""

    scenes: list[Scenes]  # T + 1 entries of N scenes
    edits: list[list[Edit]]  # [T][N]
    texts: list[list[str]]  # [T][N]

    def pictures(self, height: int, width: int) -> Tensor:
        """Truth of every state, [N, T + 1, 3, H, W] in 0..1."""
        return torch.stack([render(scenes, height, width) for scenes in self.scenes], dim=1)


def sample_sessions(
    count: int, turns: int, generator: torch.Generator, kinds: tuple[str, ...] = KINDS, star: bool = False
) -> Sessions:
    """`count` sessions of `turns` edits; with `star` every edit starts from the source instead of the one before."""
    rng = _python_rng(generator)
    source = sample_scenes(count, generator)
    scenes, edits, texts = [source], [], []
    for _ in range(turns):
        before = (source if star else scenes[-1]).facts.tolist()
        step = [sample_edit(facts, rng, kinds) for facts in before]
        after = [edit.apply(facts) for edit, facts in zip(step, before, strict=True)]
        scenes.append(source.with_facts(torch.tensor(after)))
        edits.append(step)
        texts.append([phrase(edit, rng) for edit in step])
    return Sessions(scenes, edits, texts)


def held_out_generator(seed: int) -> torch.Generator:
    """A generator for measuring: its seeds are hashes, which the small numbers of training never meet."""
    digest = hashlib.sha256(f"held out {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_images(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random pictures [count, 3, H, W] in 0..1."""
    return render(sample_scenes(count, generator), height, width)


def sample_instructions(count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Random instructions and what they say: labels [count, len(INSTRUCTION_SLOTS)], -100 where not said."""
    rng = _python_rng(generator)
    texts, rows = [], []
    slots = {name: column for column, name in enumerate(INSTRUCTION_SLOTS)}
    for facts in sample_scenes(count, generator).facts.tolist():
        edit = sample_edit(facts, rng)
        row = [-100] * len(slots)
        row[slots["kind"]] = KINDS.index(edit.kind)
        if edit.kind in ("remove", "replace"):  # where the thing stands is not said, only what it is
            row[slots["old object"]] = edit.old
        if edit.kind == "remove" and edit.fact in ("headwear", "glasses", "bow tie"):
            row[slots["removed from"]] = COLUMN[edit.fact]
        if edit.kind in ("recolour", "background", "move", "resize", "expression", "add"):
            row[slots[edit.fact]] = edit.new
        if edit.kind == "replace":
            row[slots["headwear" if edit.fact == "headwear" else "top left"]] = edit.new
        texts.append(phrase(edit, rng))
        rows.append(row)
    return texts, torch.tensor(rows)


def _python_rng(generator: torch.Generator) -> random.Random:
    return random.Random(int(torch.randint(2**62, (), generator=generator)))
