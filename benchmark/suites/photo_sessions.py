"""Photos and their instructions: a folder of images, a published set, or six photos that come with scikit-image.

A folder of images, with the same instructions for all or a list for each name:

    DIR/cat.jpg, DIR/street.png ...
    DIR/instructions.json        ["add a hat", ...]  or  {"cat.jpg": ["add a hat", ...], "street.png": [...]}
    DIR/instructions.txt         instead, one instruction a line

or a folder per session, as LME-Bench and the runs of this benchmark lay them out:

    DIR/<id>/source.png          turn1.png, turn2.png ... beside it are the edited images
    DIR/<id>/instructions.json   or any other single JSON file there; or one in DIR: {"<id>": [...]}, [{"id", "turns"}]

A turn is a text, "" for a null edit, or an object that says more; a list of turns may be the "turns", "instructions",
"edits" or "prompts" of an object:

    {"instruction": "take the hat off",   or "prompt", "text", "edit", "en", "zh"
     "returns_to": 0,                     the image must be that of this turn again; 0 is the source
     "mask": "hat.png"}                   an image beside it, white where the edit may show
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
_STEP = 16  # sides are multiples of so many pixels, as most editors need
_MAX_ASPECT_RATIO = 4.0


@dataclass(frozen=True)
class PhotoTurn:
    """Hold the instruction of a turn, and what is known of its image."""

    instruction: str
    returns_to: int | None = None
    mask: Path | None = None

    @property
    def mask_name(self) -> str | None:
        """The name of the mask's file where a session is written."""
        return self.mask and f"{self.mask.stem}.png"

    def to_json(self) -> Any:
        """Return the turn as `instructions.json` lists it."""
        if self.returns_to is None and self.mask is None:
            return self.instruction
        known = {"returns_to": self.returns_to, "mask": self.mask_name}
        return {"instruction": self.instruction, **{name: value for name, value in known.items() if value is not None}}


@dataclass(frozen=True)
class PhotoSession:
    """Hold an image file and its turns; `name` is that of its folder in a run."""

    name: str
    image: Path
    turns: tuple[PhotoTurn, ...]

    def source(self, resolution: int) -> Tensor:
        """Return the image [3, H, W] in 8 bits, cropped about its centre and scaled down to the resolution.

        `resolution` is the side of a square in pixels whose area the image may have; 0 leaves it as it is. It is never
        enlarged.
        """
        return _fitted(load_image(self.image), resolution)

    def masks(self, height: int, width: int) -> list[Tensor | None]:
        """Return where the edit of each turn may show, bool [H, W], cropped as the image is; None where not known."""
        image = load_image(self.image) if any(turn.mask for turn in self.turns) else None
        found: list[Tensor | None] = []
        for turn in self.turns:
            if turn.mask is None or image is None:
                found.append(None)
                continue
            mask = load_image(turn.mask)
            if mask.shape != image.shape:
                raise AnchorEditError(
                    f"mask '{turn.mask}' must be {_size(image)} as its image, got {_size(mask)}",
                    "Use a mask of the image's size",
                )
            found.append(_cropped(mask, height, width).amax(dim=0) > 0.5)
        return found


def default_photos() -> list[PhotoSession]:
    """Return public-domain images of the installed scikit-image, each with six edits and their reversals."""
    try:
        import skimage.data
    except ImportError as error:
        raise AnchorEditError(
            "the default photos need scikit-image", "Run `pip install scikit-image`, or give --photos DIR"
        ) from error
    return list(_described(Path(skimage.data.__file__).parent, _DEFAULT))


def find_photos(folder: Path) -> list[PhotoSession]:
    """Return the sessions of a folder, sorted by name. Raises AnchorEditError if there is none or one is incomplete."""
    if not folder.is_dir():
        raise AnchorEditError(
            f"photos must be a folder, got '{folder}'", "Give a folder of images, or of one folder per session"
        )
    tables = sorted(folder.glob("*.json"))
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    inner = {path: source for path in folders if (source := find_image(path, "source"))}
    if inner:
        bare = next((path for path in folders if path not in inner and any(path.glob("*.json"))), None)
        if bare:
            raise AnchorEditError(f"'{bare}' has instructions but no source.png", "Add it, or remove the folder")
        listed = _by_id(tables[0]) if len(tables) == 1 else {}
        return [_session_in(path, source, listed) for path, source in inner.items()]
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    if not images:
        raise AnchorEditError(f"there is no image in '{folder}'", "Put images there, or one folder per session")
    text = folder / "instructions.txt"
    if text.is_file():
        turns = tuple(PhotoTurn(line.strip()) for line in _read(text).splitlines())
        if not turns:
            raise AnchorEditError(f"'{text}' is empty", "Write a line for every turn; an empty one is a null edit")
        return _named([(path, turns) for path in images])
    table = folder / "instructions.json"
    data = _json(table)
    if isinstance(data, Mapping) and not any(name in data for name in _LISTS):
        return list(_described(folder, table))
    turns = parse_turns(data, table)
    masks = {turn.mask for turn in turns}
    return _named([(path, turns) for path in images if path not in masks])


def _described(folder: Path, table: Path) -> Iterator[PhotoSession]:
    """Yield the sessions of images of `folder` that a table of {file: turns} names."""
    sessions = []
    for file, turns in _json(table).items():
        image = folder / Path(file).name
        if not image.is_file():
            raise AnchorEditError(
                f"'{table}' names '{file}', which is not in '{folder}'", "Correct the name, or add the image"
            )
        sessions.append((image, parse_turns(turns, table, folder)))
    yield from _named(sessions)


def _named(sessions: list[tuple[Path, tuple[PhotoTurn, ...]]]) -> list[PhotoSession]:
    """Return sessions named by their images, without the file ending unless two would have the same name."""
    stems = [path.stem for path, _ in sessions]
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path, _ in sessions]
    return [PhotoSession(name, path, turns) for name, (path, turns) in zip(names, sessions)]


def _session_in(folder: Path, source: Path, listed: Mapping[str, Any]) -> PhotoSession:
    """Return the session of a folder, from the JSON file in it or from the turns `listed` for all folders."""
    table = folder / "instructions.json"
    if not table.is_file():
        tables = sorted(folder.glob("*.json"))
        if folder.name not in listed and len(tables) != 1:
            raise AnchorEditError(
                f"'{folder}' has {len(tables)} JSON files and no instructions.json", "Add instructions.json"
            )
        table = tables[0] if tables else folder.parent
    data = listed[folder.name] if folder.name in listed else _json(table)
    return PhotoSession(folder.name, source, parse_turns(data, table, folder))


def find_image(folder: Path, stem: str) -> Path | None:
    """Return the image file of this name in any format, None if there is none."""
    return next((path for path in sorted(folder.glob(f"{stem}.*")) if path.suffix.lower() in _IMAGES), None)


def _by_id(table: Path) -> Mapping[str, Any]:
    """Read turns by session from a JSON file for a whole set."""
    data = _json(table)
    if isinstance(data, Mapping):
        return data
    table_rows = [row for row in data if isinstance(row, Mapping)] if isinstance(data, list) else []
    rows = [(next((row[key] for key in _IDS if key in row), None), row) for row in table_rows]
    return {str(name): row for name, row in rows if name is not None}


def parse_turns(data: Any, table: Path, folder: Path | None = None) -> tuple[PhotoTurn, ...]:
    """Return the turns of a list in any form that the top of this file describes; masks are in `folder`."""
    if isinstance(data, Mapping):
        data = next((data[name] for name in _LISTS if name in data), None)
    if not isinstance(data, list) or not data:
        raise AnchorEditError(f"'{table}' has no list of instructions", "Write one, a text for every turn")
    folder = folder or table.parent
    return tuple(
        _turn(turn, number, f"turn {number} of '{table}'", folder) for number, turn in enumerate(data, start=1)
    )


def _turn(data: Any, number: int, what: str, folder: Path) -> PhotoTurn:
    if isinstance(data, str):
        return PhotoTurn(data)
    text = next((data[name] for name in _TEXTS if name in data), None) if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise AnchorEditError(f"{what} has no instruction", "Write a text, or an object with 'instruction'")
    back, mask = data.get("returns_to"), data.get("mask")
    if back is not None and not (type(back) is int and 0 <= back < number):
        raise AnchorEditError(
            f"{what} must return to an earlier turn, got {back!r}", "Give its number, or 0 for the source"
        )
    if mask is not None and not (isinstance(mask, str) and (folder / Path(mask).name).is_file()):
        raise AnchorEditError(f"mask {mask!r} of {what} must be an image in '{folder}'", "Add it there")
    return PhotoTurn(text, back, None if mask is None else folder / Path(mask).name)


def _fitted(image: Tensor, resolution: int) -> Tensor:
    height, width = image.shape[-2:]
    if min(height, width) < _STEP:
        raise AnchorEditError(
            f"sides of a photo must be {_STEP} pixels or more, got {_size(image)}", "Use larger photos"
        )
    if not resolution:
        return to_tensor(to_pil(image))
    work = nearest_bucket(height, width, buckets(resolution, _STEP, _MAX_ASPECT_RATIO))
    scale = min(1.0, height / work[0], width / work[1])  # nothing is enlarged
    work_height, work_width = (int(round(side * scale, 3) // _STEP * _STEP) for side in work)
    return to_tensor(to_pil(_cropped(image, work_height, work_width)))


def _cropped(image: Tensor, height: int, width: int) -> Tensor:
    """Crop the largest centred part of this aspect ratio and scale it: [C, H, W] -> [C, height, width]."""
    full_height, full_width = image.shape[-2:]
    scale = min(full_height / height, full_width / width)
    part_height, part_width = (max(1, round(side * scale)) for side in (height, width))
    top, left = (full_height - part_height) // 2, (full_width - part_width) // 2
    part = image[:, top : top + part_height, left : left + part_width]
    if part.shape[-2:] == (height, width):
        return part
    return F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise AnchorEditError(f"'{path}' must be JSON ({error})", "Fix the file") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error})", "List the instructions there, in UTF-8") from None
