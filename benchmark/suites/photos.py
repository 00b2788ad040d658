"""Suite `photos`: images of which nobody knows what an edit should make of them, measured by what is known.

    drift     against the image that must be there again: where a turn returns to an earlier one or asks for nothing;
              or outside its mask, and the masks before it, against the image that these all started from
    change    mean colour difference from the image before. An editor that does nothing has no drift and no change.
    similarity to the source, at every turn, by the models that were given (`benchmark.similarity`)

Protocols: "listed", what the sessions ask for, and "no-op", nothing, turn after turn. A record is

    {"session": "cat", "size": [H, W],
     "turns": [{"instruction", "returns_to" if there is one, "change", "drift": {...} or null, "similar": {...}}, ...],
     "cost": as in `benchmark.runner`}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from anchoredit_model.drift.metrics import colour_drift
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.filmstrip import contact_sheet, thumbnail
from anchoredit_model.images import save_image

from ..editors.base import Editor
from ..report.photo_report import make_photo_report, print_photo_report
from .base import Record, Suite
from .photo_sessions import PhotoSession, PhotoTurn
from .protocols import ProtocolSessions
from .session_runner import DIGITS, drift_figures, edit_session
from .similarity import SIMILARITIES, Similarity

PHOTO_PROTOCOLS = ("listed", "no-op")
_THUMB = 192  # pixels
_COLUMNS = 7
_LEAST_UNTOUCHED = 0.05  # of an image; less says nothing about drift


class PhotoSuite(Suite):
    """Sessions with lists of instructions; `turns` is how many of each are asked at most.

    A list that ends with the source again is asked from its beginning until there are so many; others are not.
    """

    def __init__(
        self,
        sessions: Sequence[PhotoSession],
        protocol: str,
        turns: int | None,
        area: int,
        similarities: Mapping[str, Similarity],
    ):
        if protocol not in PHOTO_PROTOCOLS:
            raise AnchorEditError(
                f"protocol '{protocol}' needs drawn scenes", f"Of photos ask for {' or '.join(PHOTO_PROTOCOLS)}"
            )
        if turns is not None and turns < 1:
            raise AnchorEditError(f"{turns} turns are no edit", "Ask for 1 or more")
        longest = max(len(session.turns) for session in sessions)
        if protocol == "no-op":
            nothing = tuple(PhotoTurn("") for _ in range(turns or longest))
            sessions = [replace(session, turns=nothing) for session in sessions]
        if turns is not None:
            sessions = [replace(session, turns=_repeated(session.turns, turns)) for session in sessions]
            longest = max(len(session.turns) for session in sessions)
            if longest < turns:
                raise AnchorEditError(
                    f"{turns} turns are asked for and {longest} are listed",
                    "Ask for so many, or end the list with a turn that returns to 0, and it is asked again and again",
                )
        self.sessions = list(sessions)
        self.names = [session.name for session in self.sessions]
        self.protocol, self.area, self.similarities = protocol, area, similarities

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "suite": "photos",
            "protocol": self.protocol,
            "turns": max(len(session.turns) for session in self.sessions),
            "sessions": len(self.sessions),
            "area": self.area,
            "photos": self._fingerprint(),
            "similarities": {name: model.fingerprint for name, model in self.similarities.items()},
        }

    @property
    def drawn(self) -> ProtocolSessions:
        raise AnchorEditError("of a photo nobody knows the edited image", "Choose an editor that edits")

    def source(self, session: int) -> Tensor:
        return self.sessions[session].source(self.area)

    def asked(self, session: int) -> list[Any]:
        return [turn.to_json() for turn in self.sessions[session].turns]

    def write(self, session: int, folder: Path) -> None:
        super().write(session, folder)
        height, width = self.source(session).shape[-2:]
        for turn, mask in zip(self.sessions[session].turns, self.sessions[session].masks(height, width)):
            if mask is not None:
                save_image(mask.float().expand(3, -1, -1), folder / turn.mask_name)

    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        asked = self.sessions[session]
        source = self.source(session)
        height, width = source.shape[-2:]
        known = references(asked.turns, asked.masks(height, width))
        images, cost = edit_session(editor, source, [turn.instruction for turn in asked.turns], session, fit=True)
        seen = {name: model.describe(source) for name, model in self.similarities.items()}
        turns = []
        for number, (turn, reference) in enumerate(zip(asked.turns, known), start=1):
            image = images[number]
            change = colour_drift(image, images[number - 1]).delta_e
            known_turn = {} if turn.returns_to is None else {"returns_to": turn.returns_to}
            turns.append(
                {
                    "instruction": turn.instruction,
                    **known_turn,
                    "change": round(change, DIGITS),
                    "drift": reference and drift_figures(image, images[reference[0]], reference[1]),
                    "similar": {name: self._similar(name, seen[name], image) for name in self.similarities},
                }
            )
        return {"session": asked.name, "size": [height, width], "turns": turns, "cost": cost}, images

    def signs(self, record: Record) -> str:
        """Return the drift of colour where it is known."""
        return " ".join(f"{turn['drift']['delta_e']:.1f}" if turn["drift"] else "." for turn in record["turns"])

    def report(self, settings: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        return make_photo_report(settings, records, [name for name in SIMILARITIES if name not in self.similarities])

    def print_report(self, report: dict[str, Any]) -> None:
        print_photo_report(report)

    def strip(self, session: int, record: Record, images: list[Tensor]) -> Image.Image:
        captions = [turn["instruction"] or "(nothing)" for turn in record["turns"]]
        thumbs = [thumbnail(image, _THUMB) for image in images]
        return contact_sheet(thumbs, captions, _THUMB, min(_COLUMNS, len(thumbs)))

    def _similar(self, name: str, source: Any, image: Tensor) -> float | None:
        model = self.similarities[name]
        value = model.compare(source, model.describe(image))
        return None if math.isnan(value) else round(value, DIGITS)

    def _fingerprint(self) -> str:
        """Of all that is asked of which images."""
        digest = hashlib.sha256()
        for number, session in enumerate(self.sessions):
            digest.update(json.dumps([session.name, self.asked(number)]).encode())
            for file in (session.image, *(turn.mask for turn in session.turns if turn.mask)):
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def _repeated(turns: Sequence[PhotoTurn], count: int) -> tuple[PhotoTurn, ...]:
    """Return the first `count` turns of a list, which begins again where it ends with the source."""
    found: list[PhotoTurn] = list(turns[:count])
    while len(found) < count and turns[-1].returns_to == 0:
        passed = len(found)  # images of this round are so many later; the source stays the source
        again = (turn if not turn.returns_to else replace(turn, returns_to=turn.returns_to + passed) for turn in turns)
        found += list(again)[: count - passed]
    return tuple(found)


def references(turns: Sequence[PhotoTurn], masks: Sequence[Tensor | None]) -> list[tuple[int, Tensor | None] | None]:
    """Per turn the number of the image that its own should be like, and where (bool [H, W]; None: everywhere).

    None where nothing is known. `masks`: where each edit may show, bool [H, W], if that is known.
    """
    states: list[tuple[int, Tensor | None]] = [(0, None)]  # per image: like which, but where it may differ
    known: list[tuple[int, Tensor | None] | None] = []
    for number, (turn, mask) in enumerate(zip(turns, masks, strict=True), start=1):
        like, touched = states[number - 1]
        if turn.returns_to is not None:
            like, touched = states[turn.returns_to]
        elif turn.instruction and mask is None:
            like, touched = number, None
        elif turn.instruction:
            touched = mask if touched is None else touched | mask
        states.append((like, touched))
        untouched = None if touched is None else ~touched
        enough = untouched is None or untouched.float().mean() >= _LEAST_UNTOUCHED
        known.append((like, None if untouched is None else untouched.float()) if like < number and enough else None)
    return known
