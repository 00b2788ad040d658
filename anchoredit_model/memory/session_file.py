"""Session files: an anchor memory as one `.safetensors`, with a JSON header and no pickle.

Tensors: `latents` [n, C, h, w], `text` [rows, E] (all turns' rows one after the other), `image` [3, H, W] and
`mask_0`, `mask_1`, ... [1, H, W], each once, however many turns share it. The header, under `anchoredit_session`
in the metadata, has the format's version, the policy, the geometry, fingerprints, and per turn its instruction,
seed, settings, number of text rows, mask and parent. K/V are never written: they are recomputed from the latents.

Version 2 keeps the K/V cache settings apart from the policy. Files of version 1 were written before the first
release and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_write import atomic_write
from ..config import KVCacheConfig, MemoryPolicy
from ..errors import AnchorEditError
from ..geometry import Geometry
from .anchor_memory import AnchorMemory, Turn

VERSION = 2
_HEADER = "anchoredit_session"
_BEGINNING = f'{{"__metadata__":{{"{_HEADER}"'.encode()  # of the JSON, behind its length, as safetensors writes it


def save_session(memory: AnchorMemory, path: str | Path) -> None:
    """Write a session file; a present one is replaced as a whole or stays."""
    path = Path(path)
    masks = {id(turn.mask): turn.mask for turn in memory.turns if turn.mask is not None}
    mask_names = {key: f"mask_{number}" for number, key in enumerate(masks)}
    header = {
        "version": VERSION,
        "policy": memory.policy.to_json(),
        "kv_cache": memory.kv_cache.to_json(),
        "geometry": memory.geometry.to_json(),
        "latent_space": memory.latent_space,
        "model": memory.model,
        "turns": [
            {
                "instruction": turn.instruction,
                "seed": turn.seed,
                "settings": turn.settings,
                "text_rows": len(turn.text),
                "mask": mask_names.get(id(turn.mask)),
                "policy": turn.policy.to_json() if turn.policy else None,
                "parent": number - 1 if number else None,
            }
            for number, turn in enumerate(memory.turns)
        ],
    }
    tensors = {
        "latents": torch.stack([turn.latent for turn in memory.turns]),
        "text": torch.cat([turn.text for turn in memory.turns]),
        "image": _pack(memory.image),
    }
    tensors |= {mask_names[key]: _pack(mask) for key, mask in masks.items()}
    with atomic_write(path, "session file") as unfinished:
        save_file(tensors, unfinished, {_HEADER: json.dumps(header)})


def load_session(path: str | Path) -> AnchorMemory:
    """Read a session file; raises AnchorEditError if it is missing, damaged or of another version."""
    path = Path(path)
    with _opened(path) as (header, file):
        # copies, because no file can be replaced on Windows while a tensor is mapped to it
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    try:
        return _memory(header, tensors)
    except Exception as error:  # a damaged header fails in many ways
        raise _damaged(path, error) from None


def check_session(path: str | Path) -> None:
    """Raise those errors of `load_session` that need only the header, which is quick."""
    with _opened(Path(path)):
        pass


def begins_as_session(path: str | Path) -> bool:
    """Tell whether a file begins as a session file, complete or not; quick enough for thousands of files.

    Raises OSError if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(8 + len(_BEGINNING))[8:] == _BEGINNING


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict, safe_open]]:
    """Yield the header of a session file, and the file open for its tensors."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise AnchorEditError(f"session file '{path}' {what}", "Check the path")
    try:
        with safe_open(path, framework="pt") as file:
            yield _header(path, file.metadata() or {}), file
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _header(path: Path, metadata: dict[str, str]) -> dict:
    if _HEADER not in metadata:
        raise AnchorEditError(f"'{path}' is not a session file", "Choose one that AnchorEdit saved")
    try:
        header = json.loads(metadata[_HEADER])
        version = int(header["version"])
    except Exception as error:  # as above
        raise _damaged(path, error) from None
    if version > VERSION:
        raise AnchorEditError(
            f"session file '{path}' has format {version}, this program reads {VERSION}", "Update AnchorEdit"
        )
    if version < VERSION:
        raise AnchorEditError(
            f"session file '{path}' has format {version} of a version before the first release",
            "Start a new session from its image and give the instructions again",
        )
    return header


def _damaged(path: Path, error: Exception) -> AnchorEditError:
    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0]
    return AnchorEditError(f"session file '{path}' is damaged ({reason})", "Use an earlier copy")


def _memory(header: dict, tensors: dict[str, Tensor]) -> AnchorMemory:
    latents, entries = tensors["latents"].float(), header["turns"]
    geometry, policy = Geometry.from_json(header["geometry"]), MemoryPolicy.from_json(header["policy"])
    masks = {name: _unpack(tensor) for name, tensor in tensors.items() if name.startswith("mask_")}
    image = _unpack(tensors["image"])
    size = (geometry.input_height, geometry.input_width)
    if not entries or len(latents) != len(entries):
        raise ValueError(f"{len(latents)} latents for {len(entries)} turns")
    if [entry["parent"] for entry in entries] != [None, *range(len(entries) - 1)]:
        raise ValueError("its turns are not one chain")
    if image.shape != (3, *size) or any(mask.shape != (1, *size) for mask in masks.values()):
        raise ValueError("its images and masks differ in size")
    if latents.ndim != 4 or geometry.work_height * latents.shape[3] != geometry.work_width * latents.shape[2]:
        raise ValueError(f"latents {list(latents.shape)} for images of {geometry.work_width}x{geometry.work_height}")
    texts = tensors["text"].float().split([entry["text_rows"] for entry in entries])
    turns = tuple(
        Turn(
            latent,
            _typed(entry["instruction"], str),
            text,
            _typed(entry["seed"], int, type(None)),
            _typed(entry["settings"], dict),
            None if entry["mask"] is None else masks[entry["mask"]],
            None if entry["policy"] is None else MemoryPolicy.from_json(entry["policy"]),
        )
        for latent, text, entry in zip(latents.unbind(), texts, entries, strict=True)
    )
    kv_cache = KVCacheConfig.from_json(header["kv_cache"])
    fingerprints = _typed(header["latent_space"], str), _typed(header["model"], str)
    return AnchorMemory(turns, image, geometry, policy, kv_cache, *fingerprints)


def _typed(value, *types: type):
    if not isinstance(value, types):
        raise ValueError(f"{value!r:.40} where {types[0].__name__} should be")
    return value


def _pack(image: Tensor) -> Tensor:
    """Store an image or mask as bytes if that loses nothing, so that the file is small, else as float32."""
    packed = (image * 255).round().to(torch.uint8)
    return (packed if torch.equal(_unpack(packed), image) else image).contiguous()


def _unpack(stored: Tensor) -> Tensor:
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()
