"""WebDataset shards: tar files of edit sessions, the format that training reads.

    <key>.0.jpg   the source
    <key>.1.jpg   after the first edit, and so on
    <key>.json    {"instructions": [{"en": "...", "zh": "..."}, ...]}, one entry per edit; with "star": true every
                  edit starts from the source, otherwise from the image before

A key has no dot; the files of one session follow each other and its images have one size. Written by
`python -m train data {write,convert}`, checked by `python -m train data validate`, read through the webdataset
library (https://github.com/webdataset/webdataset). PNG and WebP are read as well.
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
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import decode_image, to_pil

from .session import BadSession, EditSession, Problems, check_instructions, check_sizes, to_bytes

FORMATS = ("JPEG", "PNG", "WEBP")  # what Pillow may find in a shard; some of its other decoders start programs
_IMAGE = re.compile(r"(\d+)\.(jpg|jpeg|png|webp)")
_QUALITY = 95
_PER_SHARD = 256  # sessions


@dataclass(frozen=True)
class StoredSession:
    """A session as a shard holds it: images as the bytes of JPEG files."""

    key: str
    jpegs: Sequence[bytes]
    instructions: Sequence[dict[str, str]]
    star: bool = False


@dataclass(frozen=True)
class ShardPart:
    """One tar file as a part of a source."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def fingerprint(self) -> str:
        """Size and time of change: reading terabytes at every start would cost more than encoding a copy anew."""
        status = self.path.stat()
        return f"{self.path.name} {status.st_size} {status.st_mtime_ns}"

    def sessions(self, problems: Problems) -> Iterator[EditSession]:
        """Return the usable sessions of the shard in its own order; the others go into `problems`."""
        place, seen = self.path.name, set()
        for sample in _samples(self.path, problems):
            key = sample["__key__"]
            try:
                if key in seen:
                    raise BadSession("duplicate key", "an earlier session of this shard has it")
                seen.add(key)
                yield _decode(key, sample)
            except BadSession as bad:
                problems.add(place, key, bad.reason, bad.detail)


def shard_parts(*places: str | Path) -> list[ShardPart]:
    """Return the shards at `places`, files or folders of *.tar, in the order of their names.

    Raises AnchorEditError if there are none.
    """
    paths: list[Path] = []
    for place in map(Path, places):
        found = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise AnchorEditError(f"no shards at '{place}'", "Give a .tar file or a folder of them")
        paths += found
    return [ShardPart(path) for path in paths]


def write_shards(
    sessions: Iterable[StoredSession], folder: str | Path, name: str = "shard", per_shard: int = _PER_SHARD
) -> list[Path]:
    """Write sessions as `<name>-000000.tar`, ..., each whole or not at all; the same sessions give the same bytes.

    Raises AnchorEditError if the folder cannot be written to, has shards of this name already, or a key is unfit.
    """
    folder = Path(folder)
    if any(folder.glob(f"{name}-*.tar")):
        raise AnchorEditError(f"'{folder}' has shards called '{name}-...' already", "Give another folder or name")
    paths, sessions = [], iter(sessions)
    for first in sessions:
        path = folder / f"{name}-{len(paths):06d}.tar"
        with atomic_write(path, "shard", make_folder=True) as unfinished, unfinished.open("wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
                for session in chain([first], islice(sessions, per_shard - 1)):
                    tar.write(_files(session))
        paths.append(path)
    return paths


def store(session: EditSession) -> StoredSession:
    """Compress a session's images; nearly lossless, with full colour resolution."""
    jpegs = [to_jpeg(image.float() / 255) for image in session.images]
    return StoredSession(session.key, jpegs, [dict(texts) for texts in session.instructions], session.star)


def to_jpeg(image: torch.Tensor) -> bytes:
    """Return an image [3, H, W] in 0..1 as the bytes of a JPEG file."""
    stream = io.BytesIO()
    to_pil(image).save(stream, format="JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def key_of(text: str) -> str:
    """`text` as a key: what would end a key or be awkward in a file name becomes "_"."""
    return re.sub(r"[^\w-]+", "_", text).strip("_") or "session"


def archive_problem(path: Path) -> str:
    """Return what is wrong with a tar file as such, "" if nothing.

    A reader takes a spoiled header in the middle, or a file cut between two members, for the end of the archive
    and says nothing; a whole archive ends in a block of zeros.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for _ in tar:
                pass
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError) as error:
        return str(error) or type(error).__name__
    if not end:
        return "cut off"
    return "" if not any(end) else f"spoiled from byte {tar.offset} on"


def _samples(path: Path, problems: Problems) -> Iterator[dict]:
    """Return groups of files by key, up to where the archive is damaged, if it is."""
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
    """Return a group of files as a session. Raises BadSession."""
    images = [(int(match[1]), data) for name, data in sample.items() if (match := _IMAGE.fullmatch(name))]
    files = dict(images)
    missing = next(turn for turn in range(len(files) + 1) if turn not in files)
    if missing < len(files) or not files:
        raise BadSession("missing image", f"{key}.{missing}.jpg")
    if len(files) < len(images):
        raise BadSession("duplicate image", f"{len(images)} files for {len(files)} images")
    if len(files) == 1:
        raise BadSession("no edited image", "only the source")
    if "json" not in sample:
        raise BadSession("missing instructions", f"{key}.json")
    try:
        content = json.loads(sample["json"])
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise BadSession("unreadable instructions", str(error)) from None
    listed = content.get("instructions") if isinstance(content, dict) else None
    instructions = check_instructions(listed, len(files) - 1)
    star = content.get("star", False)
    if not isinstance(star, bool):
        raise BadSession("unreadable instructions", f'"star" is {star!r}, not true or false')
    try:
        shown = [decode_image(files[turn], f"{key}.{turn}.jpg", FORMATS) for turn in range(len(files))]
    except AnchorEditError as error:
        raise BadSession("unreadable image", str(error)) from None
    check_sizes((image.shape[2], image.shape[1]) for image in shown)
    return EditSession(key, to_bytes(torch.stack(shown)), instructions, star)


def _files(session: StoredSession) -> dict[str, bytes | str]:
    """Return the files of a session, as webdataset's writer takes them."""
    if key_of(session.key) != session.key:
        raise AnchorEditError(f"session key '{session.key}' is unfit", "Use letters, digits, '_' and '-'")
    check_instructions(list(session.instructions), len(session.jpegs) - 1)
    mark = {"star": True} if session.star else {}
    text = json.dumps({"instructions": list(session.instructions), **mark}, ensure_ascii=False)
    images = {f"{turn}.jpg": jpeg for turn, jpeg in enumerate(session.jpegs)}
    return {"__key__": session.key, **images, "json": text.encode()}
