"""The file or folder that a checkpoint is read from, opened as far as a format asks for it.

What a file is, is decided by its content, never by its name. Pickled code is never run.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AnchorEditError

# Five digits at most, so that a name cannot ask for a list of billions.
_SHARD = re.compile(r"(?P<stem>.+)(?P<word>_part|-)(?P<index>\d{1,5})(?P<of>of|-of-)(?P<count>\d{1,5})\.safetensors")
_LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit


class Source:
    """Open a checkpoint lazily: a format looks at as much of it as it needs.

    path   the file or folder; of a pipeline's folder the transformer folder in it
    files  all files of the weights: the file itself, or the shards of one model
    """

    def __init__(self, path: Path):
        if (path / "transformer_2").is_dir():
            raise AnchorEditError(f"{path} holds two transformers (Wan 2.2)", "Only Wan 2.1 text-to-video can edit")
        if (path / "transformer").is_dir():
            path = path / "transformer"
        if not path.exists():
            raise AnchorEditError(f"checkpoint {path} does not exist", "Check the path")
        self.path = path
        self.files = _shards_of_folder(path) if path.is_dir() else _shards(path)

    @cached_property
    def start(self) -> bytes:
        """Return the first 9 bytes of the first file; raises AnchorEditError if it is empty."""
        return _start(self.files[0])

    @cached_property
    def is_safetensors(self) -> bool:
        return _is_safetensors(self.start)

    @cached_property
    def is_pickle(self) -> bool:
        """Tell whether the file is a PyTorch file, a zip or a bare pickle; raises AnchorEditError if cut short."""
        return not self.is_safetensors and (self._is_zip or self.start.startswith(b"\x80"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the content of a folder's config.json, {} without one."""
        file = self.path / "config.json"
        return json_object(file, file.read_bytes()) if file.is_file() else {}

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Return the metadata of the safetensors files."""
        return self._safetensors[1]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the safetensors files under their own names; they may stay memory-mapped."""
        return self._safetensors[0]

    @cached_property
    def pickled(self) -> Any:
        """Return the content of a PyTorch file if it is plain data; nothing that it names is imported or called."""
        path = self.files[0]
        # Bare pickles (before PyTorch 1.6) and open files cannot be mapped, and torch takes this suffix for its own.
        mapped = self._is_zip and path.suffix != ".safetensors"
        try:
            with path.open("rb") as file:
                return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
            what = f"names the Python object {named[1]}" if named else "holds more than plain tensors"
            raise AnchorEditError(
                f"{path} {what}, so it was not opened, as that could run code",
                "Get it as .safetensors, or save it again with tensors only on a machine that may trust it",
            ) from None
        except Exception as error:  # damaged pickles fail in many ways
            raise _damaged(path, error) from None

    @cached_property
    def _safetensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        weights: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        for file in self.files:
            if not _is_safetensors(_start(file)):  # says more about a wrong file than safetensors does
                raise AnchorEditError(f"{file} is not a safetensors file", "Download it again")
            try:
                with safe_open(file, framework="pt") as shard:
                    metadata.update(shard.metadata() or {})
                    for name in shard.keys():
                        if name in weights:
                            raise AnchorEditError(
                                f"{file} repeats the weight {name} of another part", "Download it again"
                            )
                        weights[name] = shard.get_tensor(name)
            except SafetensorError as error:
                raise _damaged(file, error) from None
        return weights, metadata

    @cached_property
    def _is_zip(self) -> bool:
        if not self.start.startswith(b"PK\x03\x04"):
            return False
        try:
            whole = zipfile.is_zipfile(self.files[0])  # its table of contents is at the end
        except zipfile.BadZipFile:
            whole = False
        if not whole:
            raise _damaged(self.files[0], "its end is missing")
        return True


def json_object(source: Path | str, text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; raises AnchorEditError, which names `source`, for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise AnchorEditError(f"{source} is not a JSON object", "Download or save it again")
    return value


def _start(path: Path) -> bytes:
    """Read the first 9 bytes of a file, which tell its kind."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise AnchorEditError(f"{path} is empty", "Download it again")
    return start


def _is_safetensors(start: bytes) -> bool:
    """Tell safetensors by the first bytes: the length of the header, then the header, which is JSON.

    To be asked before pickles, because such a length may begin as they do.
    https://github.com/huggingface/safetensors#format
    """
    return len(start) == 9 and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER and start[8:] == b"{"


def _shards_of_folder(path: Path) -> tuple[Path, ...]:
    """List the .safetensors files that make up the one model in a folder."""
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        weight_map = json_object(indexes[0], indexes[0].read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise AnchorEditError(f"{indexes[0]} is not an index of shards in its own folder", "Download it again")
        return _all_present([path / name for name in sorted(set(weight_map.values()))])
    models = {_shards(file) for file in sorted(path.glob("*.safetensors"))}
    if not models:
        raise AnchorEditError(
            f"{path} holds no .safetensors weights", "Give the folder of a Wan 2.1 transformer, or a checkpoint file"
        )
    if len(models) > 1:
        raise AnchorEditError(f"{path} holds {len(models)} models", "Name one of its files instead of the folder")
    return models.pop()


def _shards(file: Path) -> tuple[Path, ...]:
    """List all parts of the model that `file` is a part of (`_part1of2`, `-00001-of-00002`), or `file` alone."""
    match = _SHARD.fullmatch(file.name)
    if not match:
        return (file,)
    stem, word, index, of, count = match.group("stem", "word", "index", "of", "count")
    names = [f"{stem}{word}{i:0{len(index)}d}{of}{count}.safetensors" for i in range(1, int(count) + 1)]
    return _all_present([file.with_name(name) for name in names])


def _all_present(files: list[Path]) -> tuple[Path, ...]:
    for file in files:
        if not file.is_file():
            raise AnchorEditError(f"{file} is missing, 1 of {len(files)} parts of the model", "Download it again")
    return tuple(files)


def _damaged(path: Path, reason: Any) -> AnchorEditError:
    reason = str(reason).split("\n")[0][:120]
    return AnchorEditError(f"{path} ({path.stat().st_size} bytes) is damaged or cut short ({reason})", "Copy it again")
