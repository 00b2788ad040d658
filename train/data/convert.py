"""Convert edit sessions of others to shards: a folder per session, or a table as of MagicBrush.

Folders: every folder below the given one is a session and its name the key. It has the images, in the order of their
names (one called source, input or original comes first; masks are ignored), and either `instructions.txt`, a line per
turn, or `instructions.json`, a list of texts or of {"en": ..., "zh": ...}.

Tables: CSV or JSON lines, a row per turn with the columns session, turn, source, target and instruction, or as
https://huggingface.co/datasets/osunlp/MagicBrush calls them: img_id, turn_index, source_img, target_img.
Further languages have columns of their own, for example instruction_zh. Turns count from 1 (or 0), and the source of
each is the target of the one before. Parquet is not supported: it needs a large library, and such files are easily
exported.

RGB JPEGs are copied byte by byte, other images are compressed. Sessions that cannot be used are left out and reported;
paths outside the folder of the images are not followed.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image

from .session import BadSession, Problems, check_instructions, check_sizes
from .shards import StoredSession, key_of, to_jpeg

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_FIRST = ("source", "input", "original")
_COLUMNS = {  # the names that each column may have
    "session": ("session", "session_id", "img_id", "id"),
    "turn": ("turn", "turn_index"),
    "source": ("source", "source_img", "input"),
    "target": ("target", "target_img", "output"),
}
_INSTRUCTION = "instruction"
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Row:
    """Hold one turn of a table; `source` and `target` are paths as in the table."""

    session: str
    turn: int
    source: str
    target: str
    instruction: dict[str, str]


def convert_folders(root: Path, language: str, problems: Problems) -> Iterator[StoredSession]:
    """Yield every folder below `root` as a session; `language` is that of texts without one."""
    keys = _Keys()
    for folder in sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: _natural(path.name)):
        try:
            images = _images_in(folder, root)
            texts = _texts_in(folder, root, language)
            yield _session(keys.new(folder.name), images, texts)
        except BadSession as bad:
            problems.add(root.name, folder.name, bad.reason, bad.detail)


def convert_table(table: Path, images: Path, language: str, problems: Problems) -> Iterator[StoredSession]:
    """Yield the sessions of a table in the order of their first rows; its paths are relative to `images`."""
    sessions: dict[str, list[Row]] = {}
    incomplete: set[str] = set()
    for number, cells in enumerate(_read_table(table), 1):
        try:
            row = _row(cells, language)
            sessions.setdefault(row.session, []).append(row)
        except BadSession as bad:
            session = str(_cell(cells, "session") or f"row {number}")
            incomplete.add(session)  # without this turn the session is not the one that was edited
            problems.add(table.name, session, bad.reason, f"row {number}: {bad.detail}")
    keys = _Keys()
    for session, rows in sessions.items():
        if session in incomplete:
            continue
        try:
            rows.sort(key=lambda row: row.turn)
            yield _session(keys.new(session), _chain(rows, images), [row.instruction for row in rows])
        except BadSession as bad:
            problems.add(table.name, session, bad.reason, bad.detail)


class _Keys:
    """Make keys, each once."""

    def __init__(self):
        self.used: set[str] = set()

    def new(self, name: str) -> str:
        """Return the key of a session; raise BadSession if another session has it."""
        key = key_of(name)
        if key in self.used:
            raise BadSession("duplicate key", f"another session has '{key}'")
        self.used.add(key)
        return key


def _session(key: str, images: list[Path], texts: object) -> StoredSession:
    """Return the session of images and texts; raise BadSession if they do not fit together."""
    if len(images) == 1:
        raise BadSession("no edited image", images[0].name)
    instructions = check_instructions(texts, len(images) - 1)
    jpegs, sizes = zip(*map(_jpeg, images))
    check_sizes(sizes)
    return StoredSession(key, jpegs, instructions)


def _jpeg(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return an image file as the bytes of a JPEG, and its (width, height)."""
    try:
        decoded = load_image(path)
    except AnchorEditError as error:
        raise BadSession("unreadable image", str(error)) from None
    with Image.open(path) as image:
        copied = image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1
    return path.read_bytes() if copied else to_jpeg(decoded), (decoded.shape[2], decoded.shape[1])


def _images_in(folder: Path, root: Path) -> list[Path]:
    """Return the images of a session's folder, the source first."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGES and "mask" not in path.stem.lower()]
    if not found:
        raise BadSession("missing image", "the folder has none")
    paths = sorted(found, key=lambda path: (path.stem.lower() not in _FIRST, _natural(path.name)))
    return [_inside(path, root) for path in paths]


def _texts_in(folder: Path, root: Path, language: str) -> object:
    """Return the contents of the instructions file: a list of texts by language if it is valid."""
    as_json, as_text = folder / "instructions.json", folder / "instructions.txt"
    try:
        if as_json.is_file():
            content = json.loads(_inside(as_json, root).read_text(encoding="utf-8-sig"))
            listed = content.get("instructions") if isinstance(content, dict) else content
        elif as_text.is_file():
            listed = _inside(as_text, root).read_text(encoding="utf-8-sig").rstrip().splitlines()
        else:
            raise BadSession("missing instructions", "neither instructions.json nor instructions.txt")
    except (ValueError, RecursionError, OSError) as error:
        raise BadSession("unreadable instructions", str(error)) from None
    if not isinstance(listed, list):
        return listed
    return [{language: text.strip()} if isinstance(text, str) else text for text in listed]


def _chain(rows: list[Row], root: Path) -> list[Path]:
    """Return the source of the first turn and the targets of all, if each turn starts from the target before."""
    turns = [row.turn for row in rows]
    if turns[0] not in (0, 1) or turns != list(range(turns[0], turns[0] + len(turns))):
        raise BadSession("broken chain", f"turns {', '.join(map(str, turns))}")
    images = [_inside(root / rows[0].source, root)]
    for row in rows:
        if not _same_image(_inside(root / row.source, root), images[-1]):
            raise BadSession("broken chain", f"turn {row.turn} starts from {row.source}")
        images.append(_inside(root / row.target, root))
    return images


def _same_image(one: Path, other: Path) -> bool:
    """Say whether two files have the same pixels; their bytes may differ."""
    if one == other or one.read_bytes() == other.read_bytes():
        return True
    try:
        return torch.equal(load_image(one), load_image(other))
    except AnchorEditError as error:
        raise BadSession("unreadable image", str(error)) from None


def _inside(path: Path, root: Path) -> Path:
    """Return the resolved path of an existing file; raise BadSession if it is not below `root`."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise BadSession("outside the folder", str(path))
    if not resolved.is_file():
        raise BadSession("missing image", str(path.relative_to(root)))
    return resolved


def _read_table(table: Path) -> Iterator[dict]:
    """Yield the rows of a CSV or JSON lines file; a line without a JSON object is an empty row."""
    suffix = table.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise AnchorEditError(f"the table must be a .csv or .jsonl file, got '{table}'", "Export it as one of them")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (_object(line) for line in file if line.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnchorEditError(f"table '{table}' cannot be read ({error})", "Save it as UTF-8") from error


def _object(line: str) -> dict:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _row(cells: dict[str, Any], language: str) -> Row:
    """Return a row; raise BadSession if a column is missing or the turn is not a number."""
    values = {name: _cell(cells, name) for name in _COLUMNS}
    texts = cells.get(_INSTRUCTION)
    instruction = texts if isinstance(texts, dict) else {} if texts is None else {language: texts}
    prefix = f"{_INSTRUCTION}_"
    instruction |= {name.removeprefix(prefix): text for name, text in cells.items() if str(name).startswith(prefix)}
    instruction = {code: text for code, text in instruction.items() if text is not None}
    missing = [name for name, value in values.items() if value in (None, "")] + [_INSTRUCTION] * (not instruction)
    if missing:
        raise BadSession("unreadable table", f"no {', '.join(missing)}")
    try:
        turn = int(values["turn"])
    except (TypeError, ValueError):
        raise BadSession("unreadable table", f"turn is {values['turn']!r}") from None
    return Row(str(values["session"]), turn, str(values["source"]), str(values["target"]), instruction)


def _cell(cells: dict[str, Any], name: str) -> Any:
    """Return the cell of a column by any of its names, None if it is missing."""
    return next((cells[column] for column in _COLUMNS[name] if column in cells), None)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which "2" comes before "10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
