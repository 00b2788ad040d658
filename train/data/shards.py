"""WebDataset shards, the format of training data: tar files of edit sessions.

    <key>.0.jpg   the source
    <key>.1.jpg   after the first edit, and so on
    <key>.json    {"instructions": [{"en": "...", "zh": "..."}, ...]}, one entry per edit; with "star": true every
                  edit starts from the source, otherwise from the image before

A key has no dot; the files of a session are adjacent and its images have one size. Written by
`python -m train data {write,convert}`, checked by `python -m train data validate`, read with the webdataset library
(https://github.com/webdataset/webdataset). PNG and WebP are read too.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import decode_image, to_pil

from .session import BadSession, EditSession, Problems, check_instructions, check_sizes, to_bytes

FORMATS = ("JPEG", "PNG", "WEBP")  # that Pillow may decode; some of its other decoders start programs
_IMAGE = re.compile(r"(\d+)\.(jpg|jpeg|png|webp)")
_QUALITY = 95
_PER_SHARD = 256  # sessions


@dataclass(frozen=True)
class StoredSession:
    """Hold a session as it is stored in a shard: images as the bytes of JPEG files."""

    key: str
    jpegs: Sequence[bytes]
    instructions: Sequence[dict[str, str]]
    star: bool = False


@dataclass(frozen=True)
class ShardPart:
    """Read one tar file as a part of a source."""

    path: Path

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return self.path.stem

    @property
    def fingerprint(self) -> str:
        """Return name, size and time of change: hashing terabytes at each start costs more than encoding a copy."""
        status = self.path.stat()
        return f"{self.path.name} {status.st_size} {status.st_mtime_ns}"

    def sessions(self, problems: Problems) -> Iterator[EditSession]:
        """Yield the usable sessions of the shard in its order; add the others to `problems`."""
        seen: set[str] = set()
        for sample in _samples(self.path, problems):
            key = sample["__key__"]
            try:
                if key in seen:
                    raise BadSession("duplicate key", "an earlier session of this shard has it")
                seen.add(key)
                yield _decode(key, sample)
            except BadSession as bad:
                problems.add(self.path.name, key, bad.reason, bad.detail)


def shard_parts(*paths: str | Path) -> list[ShardPart]:
    """Return the shards among `paths`, files or folders of *.tar, in the order of their names.

    Raises AnchorEditError if there are none.
    """
    shards: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise AnchorEditError(f"'{path}' has no shards", "Give a .tar file or a folder of them")
        shards += found
    return [ShardPart(path) for path in shards]


def write_shards(
    sessions: Iterable[StoredSession], folder: str | Path, name: str = "shard", per_shard: int = _PER_SHARD
) -> list[Path]:
    """Write sessions as `<name>-000000.tar`, ..., each whole or not at all; the same sessions give the same bytes.

    Raises AnchorEditError if the folder cannot be written to or already has shards of this name, or a key is invalid.
    """
    folder = Path(folder)
    if any(folder.glob(f"{name}-*.tar")):
        raise AnchorEditError(f"'{folder}' already has shards '{name}-...'", "Give another folder or name")
    paths: list[Path] = []
    sessions = iter(sessions)
    for first in sessions:
        path = folder / f"{name}-{len(paths):06d}.tar"
        with atomic_write(path, "shard", make_folder=True) as unfinished, unfinished.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
                for session in chain([first], islice(sessions, per_shard - 1)):
                    tar.write(_files(session))
        paths.append(path)
    return paths


def store(session: EditSession) -> StoredSession:
    """Compress the images of a session, almost without loss and with full colour resolution."""
    jpegs = [to_jpeg(image.float() / 255) for image in session.images]
    return StoredSession(session.key, jpegs, [dict(texts) for texts in session.instructions], session.star)


def to_jpeg(image: torch.Tensor) -> bytes:
    """Return an image [3, H, W] in 0..1 as the bytes of a JPEG file."""
    stream = io.BytesIO()
    to_pil(image).save(stream, format="JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def key_of(text: str) -> str:
    """Return `text` as a key: characters that are not allowed in keys or file names become "_"."""
    return re.sub(r"[^\w-]+", "_", text).strip("_") or "session"


def archive_problem(path: Path) -> str:
    """Return what is wrong with the structure of a tar file, "" if nothing.

    A reader takes a damaged header, or the end of a truncated file, for the end of the archive without an error; a
    complete archive ends in a block of zeros.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for _ in tar:
                pass
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError) as error:
        return str(error) or type(error).__name__
    if not end:
        return "truncated"
    return "" if not any(end) else f"damaged from byte {tar.offset} on"


def _samples(path: Path, problems: Problems) -> Iterator[dict]:
    """Yield the files of each key, up to where the archive is damaged."""
    if wrong := archive_problem(path):
        problems.add(path.name, "", "damaged archive", wrong)

    def handle(error: Exception) -> bool:
        if "duplicate file name" in str(error):
            problems.add(path.name, "", "duplicate key", str(error.args[0]))
        elif not wrong:
            problems.add(path.name, "", "damaged archive", str(error.args[0]) if error.args else repr(error))
        return True

    try:
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": path.name, "stream": stream}], handler=handle)
            yield from group_by_keys(files, handler=handle)
    except OSError as error:
        if not wrong:
            problems.add(path.name, "", "damaged archive", error.strerror or str(error))


def _decode(key: str, sample: dict) -> EditSession:
    """Convert the files of one key to a session; raise BadSession if they are not one."""
    numbered = [(int(match[1]), data) for name, data in sample.items() if (match := _IMAGE.fullmatch(name))]
    files = dict(numbered)
    missing = next(turn for turn in range(len(files) + 1) if turn not in files)
    if missing < len(files) or not files:
        raise BadSession("missing image", f"{key}.{missing}.jpg")
    if len(files) < len(numbered):
        raise BadSession("duplicate image", f"{len(numbered)} files for {len(files)} images")
    if len(files) == 1:
        raise BadSession("no edited image", "only the source")
    if "json" not in sample:
        raise BadSession("missing instructions", f"{key}.json")
    try:
        content = json.loads(sample["json"])
    except (ValueError, RecursionError) as error:  # ValueError: invalid JSON or UTF-8
        raise BadSession("unreadable instructions", str(error)) from None
    listed = content.get("instructions") if isinstance(content, dict) else None
    instructions = check_instructions(listed, len(files) - 1)
    star = content.get("star", False)
    if not isinstance(star, bool):
        raise BadSession("unreadable instructions", f'"star" is {star!r}, not true or false')
    try:
        images = [decode_image(files[turn], f"{key}.{turn}.jpg", FORMATS) for turn in range(len(files))]
    except AnchorEditError as error:
        raise BadSession("unreadable image", str(error)) from None
    check_sizes((image.shape[2], image.shape[1]) for image in images)
    return EditSession(key, to_bytes(torch.stack(images)), instructions, star)


def _files(session: StoredSession) -> dict[str, bytes | str]:
    """Return the files of a session for the writer of webdataset."""
    if key_of(session.key) != session.key:
        raise AnchorEditError(
            f"a session key must have only letters, digits, '_' and '-', got '{session.key}'", "Rename the session"
        )
    check_instructions(list(session.instructions), len(session.jpegs) - 1)
    layout = {"star": True} if session.star else {}
    text = json.dumps({"instructions": list(session.instructions), **layout}, ensure_ascii=False)
    images = {f"{turn}.jpg": jpeg for turn, jpeg in enumerate(session.jpegs)}
    return {"__key__": session.key, **images, "json": text.encode()}
