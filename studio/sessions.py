"""The studio: an endless, seeded source of edit sessions of which everything is known.

A session is a scene, a list of edits and an image for every state. Everything is drawn from a seed: the same
seed gives the same sessions on every machine (scenes and words are sampled on the CPU; images are drawn on
the device asked for).
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
from .scene import FACTS, Scenes, sample_scenes

# Slots of an instruction, for teaching a text encoder: the kind, and the new or named value of each fact.
INSTRUCTION_SLOTS: dict[str, int] = {
    "kind": len(KINDS),
    **{name: len(values) for name, values in FACTS.items()},
    "old object": max(len(values) for values in FACTS.values()),
    "undone": MOST_UNDONE + 2,  # none to most, or all
}
_SAYS_ITS_VALUE = (  # kinds whose words name the new value of their fact
    *("recolour", "background", "move", "resize", "expression", "count", "sign", "lighting", "style", "add"),
)
_CHINESE_SHARE = 0.2
_UNDO_EVERY = 30  # of the instructions for a text encoder, one takes back a random number of edits
_WINDOW = 2  # states before the newest that an edit may point back to, beside the source


@dataclass(frozen=True)
class Sessions:
    """N sessions of T edits: `scenes[0]` the sources, `scenes[t]` the truth after edit t."""

    scenes: list[Scenes]  # T + 1 entries of N scenes
    edits: list[list[Edit]]  # [T][N]
    texts: list[list[str]]  # [T][N]

    def images(self, height: int, width: int) -> Tensor:
        """Truth of every state, [N, T + 1, 3, H, W] in 0..1."""
        return torch.stack([render(scenes, height, width) for scenes in self.scenes], dim=1)


def visible_states(count: int, window: int = _WINDOW) -> list[int]:
    """Numbers of the states that are seen when the edit after `count` states is made: the source, the last ones."""
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
    """Draw `count` sessions of `turns` edits.

    All kinds come equally often at every turn as far as sessions allow them, or those in `shares` so many times as
    often as the others.
    With `star` every edit starts from the source instead of the state before.
    """
    rng = python_rng(generator)
    source = sample_scenes(count, generator)
    histories = [[facts] for facts in source.facts.tolist()]
    scenes, edits, texts = [source], [], []
    for _ in range(turns):
        counts: Counter = Counter()
        seen = [history[:1] if star else history for history in histories]
        step = [sample_edit(history, rng, kinds, visible_states(len(history)), counts, shares) for history in seen]
        for history, past, edit in zip(histories, seen, step, strict=True):
            history.append(edit.apply(past[-1]))
        scenes.append(source.with_facts(torch.tensor([history[-1] for history in histories])))
        edits.append(step)
        texts.append([phrase(edit, rng, pick_language(languages, rng)) for edit in step])
    return Sessions(scenes, edits, texts)


def held_out_generator(seed: int) -> torch.Generator:
    """Return a generator for measuring: its seeds are hashes, which the small numbers of training never meet."""
    digest = hashlib.sha256(f"held out {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_images(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random images [count, 3, H, W] in 0..1, in every look."""
    scenes = sample_sessions(count, 2, generator).scenes
    return render(scenes[-1], height, width)


def sample_instructions(count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Random instructions and what they say: labels [count, len(INSTRUCTION_SLOTS)], -100 where not said."""
    turns, rng = 4, python_rng(generator)
    sessions = sample_sessions(-(-count // turns), turns, generator)
    pairs = [pair for edits, texts in zip(sessions.edits, sessions.texts) for pair in zip(edits, texts)][:count]
    for index in range(0, len(pairs), _UNDO_EVERY):  # sessions seldom undo several, never more than they may see
        edit = Edit("undo", undone=rng.randint(2, MOST_UNDONE))
        pairs[index] = edit, phrase(edit, rng, pick_language(LANGUAGES, rng))
    return [text for _, text in pairs], torch.tensor([_labels(edit) for edit, _ in pairs])


def _labels(edit: Edit) -> list[int]:
    said = {"kind": KINDS.index(edit.kind)}
    if edit.kind == "undo":
        said["undone"] = edit.undone % INSTRUCTION_SLOTS["undone"]
    elif edit.changes:
        fact, old, new = edit.changes[0]
        if edit.kind in _SAYS_ITS_VALUE:
            said[fact] = new
        # where a thing is is not said, only what it is; a hat and a star are told apart by the slot they fill
        place = fact if fact in ("headwear", "glasses", "bow tie") else "top left"
        if edit.kind in ("remove", "replace"):
            said["old object"] = old
        if edit.kind in ("remove", "bring back", "replace"):
            said[place] = old if edit.kind == "remove" else new
    return [said.get(slot, -100) for slot in INSTRUCTION_SLOTS]


def pick_language(languages: Sequence[str], rng: random.Random) -> str:
    """Choose the first value mostly; the others share a fifth."""
    others = languages[1:]
    return rng.choice(others) if others and rng.random() < _CHINESE_SHARE else languages[0]


def python_rng(generator: torch.Generator) -> random.Random:
    """Return what draws edits and words: seeded by the generator, which it moves on by one number."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))
