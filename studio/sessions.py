"""Sampling of edit sessions: scenes, edits and instructions, with the true image of every state.

The same seed gives the same sessions on every machine: scenes and instructions are sampled on the CPU, images are
rendered on the device of the scenes.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .instructions import KINDS, LANGUAGES, MOST_UNDONE, Edit, phrase, sample_edit
from .render import render
from .scene import ATTRIBUTES, WORN, Scenes, sample_scenes

# Labels of an instruction, to train a text encoder with, and their number of classes: the kind, and the value of each
# attribute that the instruction names.
INSTRUCTION_SLOTS: dict[str, int] = {
    "kind": len(KINDS),
    **{name: len(values) for name, values in ATTRIBUTES.items()},
    "old object": max(len(values) for values in ATTRIBUTES.values()),
    "undone": MOST_UNDONE + 2,  # none to most, or all
}
_NAMES_NEW_VALUE = (  # kinds whose instructions name the new value of their attribute
    *("recolour", "background", "move", "resize", "expression", "count", "sign", "lighting", "style", "add"),
)
_CHINESE_SHARE = 0.2
_UNDO_EVERY = 30  # one in so many instructions for a text encoder undoes a random number of edits
_WINDOW = 2  # states before the newest that an edit may refer to, beside the source


@dataclass(frozen=True)
class Sessions:
    """Hold N sessions of T edits: `scenes[0]` are the sources, `scenes[t]` the truth after edit t."""

    scenes: list[Scenes]  # T + 1 entries of N scenes
    edits: list[list[Edit]]  # [T][N]
    texts: list[list[str]]  # [T][N]

    def images(self, height: int, width: int) -> Tensor:
        """Render every state, [N, T + 1, 3, H, W] in 0..1."""
        return torch.stack([render(scenes, height, width) for scenes in self.scenes], dim=1)


def visible_states(count: int, window: int = _WINDOW) -> list[int]:
    """Return the indices of the states that an editor sees after `count` states: the source and the last `window`."""
    return sorted({0, *range(max(0, count - window), count)})


def sample_sessions(
    count: int,
    turns: int,
    generator: torch.Generator,
    kinds: Sequence[str] = KINDS,
    languages: Sequence[str] = LANGUAGES,
    star: bool = False,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> Sessions:
    """Sample `count` sessions of `turns` edits.

    At every turn all kinds occur equally often, as far as sessions allow them, or in proportion to their `shares`
    (default: 1). With `star` every edit starts from the source instead of the state before.
    """
    rng = python_rng(generator)
    source = sample_scenes(count, generator)
    histories = [[state] for state in source.attributes.tolist()]
    scenes, edits, texts = [source], [], []
    for _ in range(turns):
        counts: Counter = Counter()
        seen = [history[:1] if star else history for history in histories]
        step = [sample_edit(history, rng, kinds, visible_states(len(history)), counts, shares) for history in seen]
        for history, past, edit in zip(histories, seen, step, strict=True):
            history.append(edit.apply(past[-1]))
        scenes.append(source.with_attributes(torch.tensor([history[-1] for history in histories])))
        edits.append(step)
        texts.append([phrase(edit, rng, pick_language(languages, rng)) for edit in step])
    return Sessions(scenes, edits, texts)


def held_out_generator(seed: int) -> torch.Generator:
    """Return a generator for evaluation: its seeds are hashes, so that the small seeds of training never match them."""
    digest = hashlib.sha256(f"held out {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_images(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Sample images [count, 3, H, W] in 0..1, of all lightings, tones and styles."""
    scenes = sample_sessions(count, 2, generator).scenes
    return render(scenes[-1], height, width)


def sample_instructions(count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Sample instructions with their labels [count, len(INSTRUCTION_SLOTS)], -100 where the text says nothing."""
    turns, rng = 4, python_rng(generator)
    sessions = sample_sessions(-(-count // turns), turns, generator)
    pairs = [pair for edits, texts in zip(sessions.edits, sessions.texts) for pair in zip(edits, texts)][:count]
    for index in range(0, len(pairs), _UNDO_EVERY):  # sessions seldom undo several edits, and never many
        edit = Edit("undo", undone=rng.randint(2, MOST_UNDONE))
        pairs[index] = edit, phrase(edit, rng, pick_language(LANGUAGES, rng))
    return [text for _, text in pairs], torch.tensor([_labels(edit) for edit, _ in pairs])


def _labels(edit: Edit) -> list[int]:
    labels = {"kind": KINDS.index(edit.kind)}
    if edit.kind == "undo":
        labels["undone"] = edit.undone % INSTRUCTION_SLOTS["undone"]
    elif edit.changes:
        attribute, old, new = edit.changes[0]
        if edit.kind in _NAMES_NEW_VALUE:
            labels[attribute] = new
        # These instructions name an object but not its corner: the first corner stands for all of them.
        attribute = attribute if attribute in WORN else "top left"
        if edit.kind in ("remove", "replace"):
            labels["old object"] = old
        if edit.kind in ("remove", "bring back", "replace"):
            labels[attribute] = old if edit.kind == "remove" else new
    return [labels.get(slot, -100) for slot in INSTRUCTION_SLOTS]


def pick_language(languages: Sequence[str], rng: random.Random) -> str:
    """Choose the first language in four cases of five, else one of the others."""
    others = languages[1:]
    return rng.choice(others) if others and rng.random() < _CHINESE_SHARE else languages[0]


def python_rng(generator: torch.Generator) -> random.Random:
    """Return a generator for edits and words, seeded with the next number of a torch generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))
