"""Photos to edit and what is asked of them: a folder of images, a published set, or a few that scikit-image brings.

A folder of images, all asked the same, or each what its name stands for:

    DIR/cat.jpg, DIR/street.png ...
    DIR/instructions.json        ["add a hat", ...]  or  {"cat.jpg": ["add a hat", ...], "street.png": [...]}
    DIR/instructions.txt         a line each, instead

or a folder per session, as LME-Bench and the runs of this benchmark lay them out:

    DIR/<id>/source.png          turn1.png, turn2.png ... beside it are what an editor made
    DIR/<id>/instructions.json   or any other single JSON file there; or one in DIR: {"<id>": [...]}, [{"id", "turns"}]

A turn is a text, "" asking for nothing, or says more, and a list of turns may be the "turns", "instructions", "edits"
or "prompts" of an object:

    {"instruction": "take the hat off",   or "prompt", "text", "edit", "en", "zh"
     "returns_to": 0,                     the image must be that of this turn again, 0 being the source
     "mask": "hat.png"}                   an image beside it, white where the edit may show, black where nothing may
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.geometry import buckets, nearest_bucket
from anchoredit_model.images import load_image, to_pil, to_tensor

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_LISTS = ("turns", "instructions", "edits", "prompts")
_TEXTS = ("instruction", "prompt", "text", "edit", "en", "zh")
_IDS = ("id", "session", "session_id", "name")
_DEFAULT = Path(__file__).parent / "photos.json"
_STEP = 16  # pixels that the sides are multiples of, as most editors ask for
_RATIO = 4.0  # the longest side by the shortest


@dataclass(frozen=True)
class PhotoTurn:
    """What is asked at a turn, and what is known of its image."""

    instruction: str
    returns_to: int | None = None
    mask: Path | None = None

    @property
    def mask_name(self) -> str | None:
        """Of the mask's file where a session is written."""
        return self.mask and f"{self.mask.stem}.png"

    def to_json(self) -> Any:
        """As `instructions.json` has it."""
        if self.returns_to is None and self.mask is None:
            return self.instruction
        known = {"returns_to": self.returns_to, "mask": self.mask_name}
        return {"instruction": self.instruction, **{name: value for name, value in known.items() if value is not None}}


@dataclass(frozen=True)
class PhotoSession:
    """An image file and its turns; `name` is that of its folder in a run."""

    name: str
    image: Path
    turns: tuple[PhotoTurn, ...]

    def source(self, area: int) -> Tensor:
        """Return the image [3, H, W], cropped around its centre to the nearest size of at most this area, in 8 bits.

        `area` is the side of a square in pixels, 0 leaves the image as it is. It is never enlarged.
        """
        return _fitted(load_image(self.image), area)

    def masks(self, height: int, width: int) -> list[Tensor | None]:
        """Per turn where its edit may show, bool [H, W], cropped and scaled with the image; None where not known."""
        full = load_image(self.image).shape[-2:] if any(turn.mask for turn in self.turns) else None
        found: list[Tensor | None] = []
        for turn in self.turns:
            if turn.mask is None:
                found.append(None)
                continue
            mask = load_image(turn.mask)
            if mask.shape[-2:] != full:
                raise AnchorEditError(
                    f"mask '{turn.mask}' is {mask.shape[-1]}x{mask.shape[-2]}, its image {full[1]}x{full[0]}",
                    "Use one of the image's size",
                )
            found.append(_cropped(mask, height, width).amax(dim=0) > 0.5)
        return found


def default_photos() -> list[PhotoSession]:
    """Public-domain images of the installed scikit-image, each asked for six changes and to take them back."""
    try:
        import skimage.data
    except ImportError as error:
        raise AnchorEditError(
            "the photos that are used by default come with scikit-image",
            "Pip install scikit-image, or give --photos DIR",
        ) from error
    return list(_described(Path(skimage.data.__file__).parent, _DEFAULT))


def find_photos(folder: Path) -> list[PhotoSession]:
    """Return the sessions of a folder, by name. Raises AnchorEditError if there are none or one is incomplete."""
    if not folder.is_dir():
        raise AnchorEditError(f"photos '{folder}' are no folder", "Give one of images, or of a folder per session")
    tables = sorted(folder.glob("*.json"))
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    inner = [path for path in folders if image_named(path, "source")]
    if inner:
        bare = next((path for path in folders if path not in inner and any(path.glob("*.json"))), None)
        if bare:
            raise AnchorEditError(
                f"'{bare}' says what is asked and has no source.png", "Add it, or take the folder out"
            )
        listed = _by_id(tables[0]) if len(tables) == 1 else {}
        return [_session_in(path, listed) for path in inner]
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    if not images:
        raise AnchorEditError(f"there is no image in '{folder}'", "Put some there, or a folder per session")
    text = folder / "instructions.txt"
    if text.is_file():
        turns = tuple(PhotoTurn(line.strip()) for line in _read(text).splitlines())
        if not turns:
            raise AnchorEditError(f"'{text}' is empty", "Write a line for every turn, an empty one asks for nothing")
        return _named([(path, turns) for path in images])
    table = folder / "instructions.json"
    data = _json(table)
    if isinstance(data, Mapping) and not any(name in data for name in _LISTS):
        return list(_described(folder, table))
    turns = turns_of(data, table)
    masks = {turn.mask for turn in turns}
    return _named([(path, turns) for path in images if path not in masks])


def _described(folder: Path, table: Path) -> Iterator[PhotoSession]:
    """Sessions of images of `folder` that a table of {file: turns} names."""
    sessions = []
    for file, turns in _json(table).items():
        image = folder / Path(file).name
        if not image.is_file():
            raise AnchorEditError(
                f"'{table}' names '{file}', which is not in '{folder}'", "Correct the name, or put the image there"
            )
        sessions.append((image, turns_of(turns, table, folder)))
    yield from _named(sessions)


def _named(sessions: list[tuple[Path, tuple[PhotoTurn, ...]]]) -> list[PhotoSession]:
    """By their images' names, without endings where that is clear."""
    stems = [path.stem for path, _ in sessions]
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path, _ in sessions]
    return [PhotoSession(name, path, turns) for name, (path, turns) in zip(names, sessions)]


def _session_in(folder: Path, listed: Mapping[str, Any]) -> PhotoSession:
    """Return the session of a folder, from the JSON file in it or from what is `listed` for all."""
    table = folder / "instructions.json"
    if not table.is_file():
        tables = sorted(folder.glob("*.json"))
        if folder.name not in listed and len(tables) != 1:
            raise AnchorEditError(
                f"'{folder}' has {len(tables)} JSON files, and nothing else says what is asked", "Add instructions.json"
            )
        table = tables[0] if tables else folder.parent
    data = listed[folder.name] if folder.name in listed else _json(table)
    return PhotoSession(folder.name, image_named(folder, "source"), turns_of(data, table, folder))


def image_named(folder: Path, stem: str) -> Path | None:
    """Return the image file of this name, whatever its format."""
    return next((path for path in sorted(folder.glob(f"{stem}.*")) if path.suffix.lower() in _IMAGES), None)


def _by_id(table: Path) -> Mapping[str, Any]:
    """Return turns by session, of a JSON file for a whole set."""
    data = _json(table)
    if isinstance(data, Mapping):
        return data
    table_rows = [row for row in data if isinstance(row, Mapping)] if isinstance(data, list) else []
    rows = [(next((row[key] for key in _IDS if key in row), None), row) for row in table_rows]
    return {str(name): row for name, row in rows if name is not None}


def turns_of(data: Any, table: Path, folder: Path | None = None) -> tuple[PhotoTurn, ...]:
    """Return a list of turns as the top of this file says; masks are in `folder`."""
    if isinstance(data, Mapping):
        data = next((data[name] for name in _LISTS if name in data), None)
    if not isinstance(data, list) or not data:
        raise AnchorEditError(f"'{table}' holds no list of instructions", "Write one, a text for every turn")
    folder = folder or table.parent
    return tuple(
        _turn(turn, number, f"turn {number} of '{table}'", folder) for number, turn in enumerate(data, start=1)
    )


def _turn(data: Any, number: int, what: str, folder: Path) -> PhotoTurn:
    if isinstance(data, str):
        return PhotoTurn(data)
    text = next((data[name] for name in _TEXTS if name in data), None) if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise AnchorEditError(f"{what} is no instruction", "Write a text, or an object with 'instruction'")
    back, mask = data.get("returns_to"), data.get("mask")
    if back is not None and not (type(back) is int and 0 <= back < number):
        raise AnchorEditError(f"{what} returns to {back!r}", "Give an earlier turn, or 0 for the source")
    if mask is not None and not (isinstance(mask, str) and (folder / Path(mask).name).is_file()):
        raise AnchorEditError(f"{what} has the mask {mask!r}", f"Put an image of that name into '{folder}'")
    return PhotoTurn(text, back, None if mask is None else folder / Path(mask).name)


def _fitted(image: Tensor, area: int) -> Tensor:
    height, width = image.shape[-2:]
    if min(height, width) < _STEP:
        raise AnchorEditError(f"a photo of {width}x{height} pixels shows nothing", "Use larger ones")
    if not area:
        return to_tensor(to_pil(image))
    work = nearest_bucket(height, width, buckets(area, _STEP, _RATIO))
    scale = min(1.0, height / work[0], width / work[1])  # nothing is enlarged
    work = tuple(round(side * scale, 3) // _STEP * _STEP for side in work)
    return to_tensor(to_pil(_cropped(image, *map(int, work))))


def _cropped(image: Tensor, height: int, width: int) -> Tensor:
    """Return the largest part about the centre that has this shape, scaled to it: [C, H, W] -> [C, height, width]."""
    full_height, full_width = image.shape[-2:]
    scale = min(full_height / height, full_width / width)
    part_height, part_width = (max(1, round(side * scale)) for side in (height, width))
    top, left = (full_height - part_height) // 2, (full_width - part_width) // 2
    part = image[:, top : top + part_height, left : left + part_width]
    if part.shape[-2:] == (height, width):
        return part
    return F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise AnchorEditError(f"'{path}' is no JSON ({error})", "Mend it there") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error})", "List there what is asked, in UTF-8") from None
