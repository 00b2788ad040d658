"""Put one session through an editor and under the judge, and record the result as plain JSON.

    {"session": 17,
     "turns": [{"instruction", "kind",
                "not_applicable"                   the editor's own previous image already shows all that is asked for
                "asked": {attribute: value}        what the instruction sets
                "followed", "preservation", "identity", "damage", "likeness"   as in `studio.judge.Verdict`
                "wrong": {attribute: value}        attributes that the image shows, by the judge, and should not
                "drift": {...} or null}, ...]      `anchoredit_model.drift` against the source, where no edit so far
                                                   should show; null if that is next to nothing
     "probes": [{"what", "turn", "attributes"}, ...]     of the protocol
     "cost": {"seconds": [...], "cache_bytes": [...], "peak_bytes"}}

A turn that is not applicable comes after a failed one: "undo that" where nothing was done, "bring back the hat" where
it was never removed. A no-op would succeed there, so it is recorded but not counted.

Images are judged as an 8-bit file holds them, so that a finished run can be judged again from its files.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.drift.metrics import drift
from anchoredit_model.errors import AnchorEditError
from studio.instructions import Edit
from studio.scene import ATTRIBUTES, Scenes

from ..editors.base import Editor
from .protocols import ProtocolSessions

if TYPE_CHECKING:
    from studio.judge import Judge

DIGITS = 5  # of measured values in a record
MIN_AREA = 0.05  # of an image; drift says nothing where less than this should be unchanged
_VISIBLE = 0.5 / 255  # two drawings differ in a pixel if an 8-bit file would
_MARGIN = 3  # pixels around an edit that count as edited


def run_session(
    editor: Editor, judge: Judge, ground_truth: ProtocolSessions, session: int, drawings: Sequence[Tensor]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the record of a session, and its images, the source first.

    `drawings`: the correct image [3, H, W] of every state, the source first.
    """
    sessions = ground_truth.sessions
    scenes = [states[session : session + 1] for states in sessions.scenes]
    edits = [row[session] for row in sessions.edits]
    texts = [row[session] for row in sessions.texts]
    images, cost = edit_session(editor, drawings[0], texts, session)
    judged, turns = scenes[0], []
    for turn, edit in enumerate(edits, start=1):
        verdict = judge.judge(images[turn][None], images[turn - 1][None], judged, [edit])
        before, judged = judged, judged.with_attributes(verdict.attributes)
        turns.append(
            {
                "instruction": texts[turn - 1],
                "kind": edit.kind,
                "not_applicable": _is_done(edit, before),
                "asked": {change.attribute: ATTRIBUTES[change.attribute][change.new] for change in edit.changes},
                "followed": bool(verdict.followed),
                "preservation": bool(verdict.preservation),
                "identity": bool(verdict.identity),
                "damage": round(float(verdict.damage), DIGITS),
                "likeness": round(float(verdict.likeness), DIGITS),
                "wrong": _wrong(judged, scenes[turn]),
                "drift": _drift(images[turn], drawings[0], drawings[turn]),
            }
        )
    probes = [asdict(probe) for probe in ground_truth.probes[session]]
    return {"session": session, "turns": turns, "probes": probes, "cost": cost}, images


def is_success(turn: Mapping[str, Any]) -> bool:
    return turn["followed"] and turn["preservation"] and turn["identity"]


def to_8_bit(image: Tensor) -> Tensor:
    """Return the image as an 8-bit file holds it."""
    return (image.detach().cpu().float().clamp(0, 1) * 255).round() / 255


def edit_session(
    editor: Editor, source: Tensor, texts: list[str], session: int, fit: bool = False
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the source and an editor's images [3, H, W], as files hold them, and what they cost.

    With `fit`, images of another size are scaled to the source's; without it they are an AnchorEditError.
    """
    images, seconds, cached = [source], [], []
    began = time.perf_counter()  # the start counts to the first turn
    editor.start(source, session)
    for turn, text in enumerate(texts, start=1):
        image = editor.edit(text)
        if image.shape != source.shape:
            if not fit or image.ndim != 3 or image.shape[0] != 3:
                raise AnchorEditError(
                    f"the editor's image of turn {turn} must be {list(source.shape)}, got {list(image.shape)}",
                    "Return images of the source's size",
                )
            image = F.interpolate(image[None].float(), source.shape[-2:], mode="bicubic", antialias=True)[0]
        images.append(to_8_bit(image))  # on the CPU, which waits for the device
        seconds.append(round(time.perf_counter() - began, 6))
        cached.append(editor.cache_bytes)
        began = time.perf_counter()
    return images, {"seconds": seconds, "cache_bytes": cached, "peak_bytes": _peak_bytes()}


def drift_metrics(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Return `anchoredit_model.drift` of images [3, H, W] as JSON; `mask` [H, W] is 1 where nothing should change."""
    found = drift(image, reference, mask)
    metrics = {**asdict(found), "shift": math.hypot(found.dx, found.dy)}  # dx, dy of many sessions cancel out
    return {name: round(value, DIGITS) for name, value in metrics.items()}


def _is_done(edit: Edit, judged: Scenes) -> bool:
    """Return whether an image with these attributes already shows all that an edit asks for."""
    return bool(edit.changes) and all(int(judged.attribute(change.attribute)) == change.new for change in edit.changes)


def _wrong(judged: Scenes, truth: Scenes) -> dict[str, str]:
    pairs = zip(ATTRIBUTES.items(), judged.attributes[0].tolist(), truth.attributes[0].tolist())
    return {name: values[seen] for (name, values), seen, true in pairs if seen != true}


def _drift(image: Tensor, source: Tensor, drawing: Tensor) -> dict[str, float] | None:
    """Return the drift from the source where the correct drawing is still the source; None where too little is."""
    edited = ((drawing - source).abs().amax(dim=0) > _VISIBLE).float()  # [H, W]
    unchanged = 1 - F.max_pool2d(edited[None], 2 * _MARGIN + 1, stride=1, padding=_MARGIN)[0]
    if unchanged.mean() < MIN_AREA:
        return None
    return drift_metrics(image, source, unchanged)


def _peak_bytes() -> int | None:
    """Return the most memory in use so far: the GPU's if it was used, else this process's; None if not known."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
