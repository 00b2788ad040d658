"""Suite `photos`: any images. The correct result of an edit is not known, so what is known is measured.

    drift       from the image that a turn must show again: where it returns to an earlier turn or is a null edit; or,
                outside its mask and the masks before it, from the image that these all started from
    change      mean colour difference from the image before; a no-op has no drift, but no change either
    similarity  to the source, at every turn, by the models that were given (similarity.py)

Protocols: "listed", the instructions of the sessions, and "no-op", null edits only. A record is

    {"session": "cat", "size": [H, W],
     "turns": [{"instruction", "change", "drift": {...} or null, "similarity": {...}}, ...],
     "cost": as in session_runner.py}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.drift.metrics import colour_drift
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import save_image

from ..editors.base import Editor
from .base import Record, Suite
from .photo_sessions import PhotoSession, PhotoTurn
from .protocols import ProtocolSessions
from .session_runner import DIGITS, MIN_AREA, drift_metrics, edit_session
from .similarity import Similarity

PHOTO_PROTOCOLS = ("listed", "no-op")


class PhotoSuite(Suite):
    """Hold sessions with lists of instructions, of each at most `turns`.

    A list that ends with the source again is repeated until there are so many turns; others are not.
    """

    def __init__(
        self,
        sessions: Sequence[PhotoSession],
        protocol: str,
        turns: int | None,
        resolution: int,
        similarities: Mapping[str, Similarity],
    ):
        if protocol not in PHOTO_PROTOCOLS:
            raise AnchorEditError(
                f"protocol '{protocol}' needs drawn scenes", f"With photos use {' or '.join(PHOTO_PROTOCOLS)}"
            )
        if turns is not None and turns < 1:
            raise AnchorEditError(f"turns must be 1 or more, got {turns}", "Use 1 or more")
        longest = max(len(session.turns) for session in sessions)
        if protocol == "no-op":
            null_edits = tuple(PhotoTurn("") for _ in range(turns or longest))
            sessions = [replace(session, turns=null_edits) for session in sessions]
        if turns is not None:
            sessions = [replace(session, turns=_repeated(session.turns, turns)) for session in sessions]
            longest = max(len(session.turns) for session in sessions)
            if longest < turns:
                raise AnchorEditError(
                    f"turns must be at most the {longest} that are listed, got {turns}",
                    "Use so many, or end the list with a turn that returns to 0, and it is repeated",
                )
        self.sessions = list(sessions)
        self.names = [session.name for session in self.sessions]
        self.protocol, self.resolution, self.similarities = protocol, resolution, similarities

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "suite": "photos",
            "protocol": self.protocol,
            "turns": max(len(session.turns) for session in self.sessions),
            "sessions": len(self.sessions),
            "resolution": self.resolution,
            "photos": self._fingerprint(),
            "similarities": {name: model.fingerprint for name, model in self.similarities.items()},
        }

    @property
    def ground_truth(self) -> ProtocolSessions:
        raise AnchorEditError("the correct edit of a photo is not known", "Use an editor other than oracle or shuffled")

    def source(self, session: int) -> Tensor:
        return self.sessions[session].source(self.resolution)

    def instructions(self, session: int) -> list[Any]:
        return [turn.to_json() for turn in self.sessions[session].turns]

    def write(self, session: int, folder: Path) -> None:
        super().write(session, folder)
        height, width = self.source(session).shape[-2:]
        for turn, mask in zip(self.sessions[session].turns, self.sessions[session].masks(height, width)):
            if mask is not None and turn.mask_name:
                save_image(mask.float().expand(3, -1, -1), folder / turn.mask_name)

    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        photo = self.sessions[session]
        source = self.source(session)
        height, width = source.shape[-2:]
        known = references(photo.turns, photo.masks(height, width))
        images, cost = edit_session(editor, source, [turn.instruction for turn in photo.turns], session, fit=True)
        source_features = {name: model.describe(source) for name, model in self.similarities.items()}
        turns = []
        for number, (turn, reference) in enumerate(zip(photo.turns, known), start=1):
            image = images[number]
            change = colour_drift(image, images[number - 1]).delta_e
            turns.append(
                {
                    "instruction": turn.instruction,
                    "change": round(change, DIGITS),
                    "drift": reference and drift_metrics(image, images[reference[0]], reference[1]),
                    "similarity": {
                        name: self._similar(name, source_features[name], image) for name in self.similarities
                    },
                }
            )
        return {"session": photo.name, "size": [height, width], "turns": turns, "cost": cost}, images

    def progress(self, record: Record) -> str:
        """Return the colour drift per turn where it is known."""
        return " ".join(f"{turn['drift']['delta_e']:.1f}" if turn["drift"] else "." for turn in record["turns"])

    def _similar(self, name: str, source: Any, image: Tensor) -> float | None:
        model = self.similarities[name]
        value = model.compare(source, model.describe(image))
        return None if math.isnan(value) else round(value, DIGITS)

    def _fingerprint(self) -> str:
        """Return a hash of all images, masks and instructions."""
        digest = hashlib.sha256()
        for number, session in enumerate(self.sessions):
            digest.update(json.dumps([session.name, self.instructions(number)]).encode())
            for file in (session.image, *(turn.mask for turn in session.turns if turn.mask)):
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def _repeated(turns: Sequence[PhotoTurn], count: int) -> tuple[PhotoTurn, ...]:
    """Return the first `count` turns of a list, which is repeated if it ends with the source."""
    found: list[PhotoTurn] = list(turns[:count])
    while len(found) < count and turns[-1].returns_to == 0:
        passed = len(found)  # so many turns later, except the source
        again = (turn if not turn.returns_to else replace(turn, returns_to=turn.returns_to + passed) for turn in turns)
        found += list(again)[: count - passed]
    return tuple(found)


def references(turns: Sequence[PhotoTurn], masks: Sequence[Tensor | None]) -> list[tuple[int, Tensor | None] | None]:
    """Return for every turn the number of the image that its own must equal, and where ([H, W]; None: everywhere).

    A turn of which nothing is known is None. `masks`: where each edit may show, bool [H, W], if that is known.
    """
    states: list[tuple[int, Tensor | None]] = [(0, None)]  # per image: the one it must equal, and where it need not
    known: list[tuple[int, Tensor | None] | None] = []
    for number, (turn, mask) in enumerate(zip(turns, masks, strict=True), start=1):
        equal, edited = states[number - 1]
        if turn.returns_to is not None:
            equal, edited = states[turn.returns_to]
        elif turn.instruction and mask is None:
            equal, edited = number, None
        elif turn.instruction and mask is not None:
            edited = mask if edited is None else edited | mask
        states.append((equal, edited))
        unchanged = None if edited is None else (~edited).float()
        enough = unchanged is None or unchanged.mean() >= MIN_AREA
        known.append((equal, unchanged) if equal < number and enough else None)
    return known
