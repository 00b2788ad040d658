"""One session through an editor and under the judge; what comes out is a record, plain JSON.

    {"session": 17,
     "turns": [{"instruction", "kind",
                "moot"                             the editor's own previous image already shows all that is asked
                "asked": {fact: value}             what the instruction sets
                "followed", "untouched", "identity", "damage", "likeness"   as in `train.judge.Verdict`
                "wrong": {fact: value}             facts that the image shows, by its reading, and should not
                "drift": {...} or null}, ...]      `anchoredit_model.drift` against the source, where no edit so far
                                                   should show; null if that is next to nothing
     "marks": [{"what", "turn", "facts"}, ...]     of the protocol
     "cost": {"seconds": [...], "cache_bytes": [...], "peak_bytes"}}

A moot turn comes after a failed one: "undo that" where nothing was done, "bring back the hat" where it was never
taken off. Doing nothing would be a success there, so it is recorded but not counted.

Images are judged as an 8-bit file holds them, so that a finished run can be judged again from its files.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.drift.metrics import drift
from anchoredit_model.errors import AnchorEditError
from studio.instructions import Edit
from studio.render import render
from studio.scene import ATTRIBUTES, Scenes

from ..editors.base import Editor
from .protocols import ProtocolSessions

if TYPE_CHECKING:
    from studio.judge import Judge

DIGITS = 5  # of measured values in a record
_SHOWS = 0.5 / 255  # two drawings differ in a pixel if a file would
_MARGIN = 3  # pixels around an edit that count as edited
_LEAST_UNTOUCHED = 0.05  # of the image; less says nothing about drift


def run_session(
    editor: Editor, judge: Judge, drawn: ProtocolSessions, session: int, size: int
) -> tuple[dict, list[Tensor]]:
    """Return the record of a session, and its images [3, size, size], the source first."""
    sessions = drawn.sessions
    scenes = [states[session : session + 1] for states in sessions.scenes]
    edits = [row[session] for row in sessions.edits]
    texts = [row[session] for row in sessions.texts]
    drawings = truths(drawn, session, size)
    images, cost = edit_session(editor, drawings[0], texts, session)
    believed, turns = scenes[0], []
    for turn, edit in enumerate(edits, start=1):
        verdict = judge.judge(images[turn][None], images[turn - 1][None], believed, [edit])
        before, believed = believed, believed.with_attributes(verdict.attributes)
        turns.append(
            {
                "instruction": texts[turn - 1],
                "kind": edit.kind,
                "moot": _is_moot(edit, before),
                "asked": _asked(edit),
                "followed": bool(verdict.followed),
                "untouched": bool(verdict.preservation),
                "identity": bool(verdict.identity),
                "damage": round(float(verdict.damage), DIGITS),
                "likeness": round(float(verdict.likeness), DIGITS),
                "wrong": _wrong(believed, scenes[turn]),
                "drift": _drift(images[turn], drawings[0], drawings[turn]),
            }
        )
    marks = [asdict(mark) for mark in drawn.marks[session]]
    return {"session": session, "turns": turns, "marks": marks, "cost": cost}, images


def truths(drawn: ProtocolSessions, session: int, size: int) -> list[Tensor]:
    """Return the drawing of every state of a session, [3, size, size] each, the source first."""
    scenes = [states[session : session + 1] for states in drawn.sessions.scenes]
    return [as_saved(render(scene, size, size)[0]) for scene in scenes]


def as_saved(image: Tensor) -> Tensor:
    """Return the image as an 8-bit file holds it."""
    return (image.detach().cpu().float().clamp(0, 1) * 255).round() / 255


def edit_session(
    editor: Editor, source: Tensor, texts: list[str], session: int, fit: bool = False
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the source and an editor's images [3, H, W] as files hold them, and what they cost.

    With `fit`, images of another size are scaled to the source's; else they are an AnchorEditError.
    """
    images, seconds, held = [source], [], []
    began = time.perf_counter()  # what a start costs belongs to the first turn
    editor.start(source, session)
    for turn, text in enumerate(texts, start=1):
        image = editor.edit(text)
        if image.shape != source.shape:
            if not fit or image.ndim != 3 or image.shape[0] != 3:
                raise AnchorEditError(
                    f"the editor's turn {turn} is {list(image.shape)}, the source {list(source.shape)}",
                    "An editor has to return images of its source's size",
                )
            image = F.interpolate(image[None].float(), source.shape[-2:], mode="bicubic", antialias=True)[0]
        images.append(as_saved(image))  # on the CPU, so nothing is left to wait for
        seconds.append(round(time.perf_counter() - began, 6))
        held.append(editor.cache_bytes)
        began = time.perf_counter()
    return images, {"seconds": seconds, "cache_bytes": held, "peak_bytes": _peak_bytes()}


def _is_moot(edit: Edit, believed: Scenes) -> bool:
    return bool(edit.changes) and all(
        int(believed.attribute(change.attribute)) == change.new for change in edit.changes
    )


def _asked(edit: Edit) -> dict[str, str]:
    return {change.attribute: ATTRIBUTES[change.attribute][change.new] for change in edit.changes}


def _wrong(read: Scenes, truth: Scenes) -> dict[str, str]:
    pairs = zip(ATTRIBUTES.items(), read.attributes[0].tolist(), truth.attributes[0].tolist())
    return {name: values[seen] for (name, values), seen, true in pairs if seen != true}


def _drift(image: Tensor, source: Tensor, truth: Tensor) -> dict[str, float] | None:
    """Drift from the source where the truth is still the source; None where too little is."""
    touched = ((truth - source).abs().amax(dim=0) > _SHOWS).float()  # [H, W]
    untouched = 1 - F.max_pool2d(touched[None], 2 * _MARGIN + 1, stride=1, padding=_MARGIN)[0]
    if untouched.mean() < _LEAST_UNTOUCHED:
        return None
    return drift_figures(image, source, untouched)


def drift_figures(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """`anchoredit_model.drift` of images [3, H, W] as JSON; `mask` [H, W] is 1 where nothing should change."""
    found = drift(image, reference, mask)
    figures = {**asdict(found), "shift": math.hypot(found.dx, found.dy)}  # shifts of many sessions cancel out in dx, dy
    return {name: round(value, DIGITS) for name, value in figures.items()}


def _peak_bytes() -> int | None:
    """Return the most memory that was in use so far: the GPU's if there is one at work, else this process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
