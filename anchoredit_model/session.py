"""Session files: an anchor memory as one `.safetensors`, with a JSON header and no pickle.

Tensors: `latents` [n, C, h, w], `text` [rows, E] (all turns' rows one after the other), `picture` [3, H, W] and
`mask_<turn>` [1, H, W] where a turn has one. The header, under `anchoredit_session` in the metadata, has the
format's version, the policy, the geometry, fingerprints, and per turn its instruction, seed, settings, number
of text rows and parent. Keys and values are never written: they are made again from the latents.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import MemoryPolicy
from .errors import AnchorEditError
from .geometry import Geometry
from .memory import AnchorMemory, Turn

VERSION = 1
_HEADER = "anchoredit_session"


def save_session(memory: AnchorMemory, path: str | Path) -> None:
    """Writes the session to a file beside the old one, then replaces it: either is always whole."""
    path = Path(path)
    header = {
        "version": VERSION,
        "policy": memory.policy.to_json(),
        "geometry": memory.geometry.to_json(),
        "latent_space": memory.latent_space,
        "model": memory.model,
        "turns": [
            {
                "instruction": turn.instruction,
                "seed": turn.seed,
                "settings": turn.settings,
                "text_rows": len(turn.text),
                "parent": number - 1 if number else None,
            }
            for number, turn in enumerate(memory.turns)
        ],
    }
    tensors = {
        "latents": torch.stack([turn.latent for turn in memory.turns]),
        "text": torch.cat([turn.text for turn in memory.turns]),
        "picture": _pack_picture(memory.picture),
    }
    tensors |= {f"mask_{n}": turn.mask.contiguous() for n, turn in enumerate(memory.turns) if turn.mask is not None}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, unfinished, {_HEADER: json.dumps(header)})
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise AnchorEditError(f"cannot write the session '{path}' ({error}): choose a folder with room to write") from None


def load_session(path: str | Path) -> AnchorMemory:
    """The memory a session file holds; errors name the file and what to do."""
    path = Path(path)
    if not path.is_file():
        raise AnchorEditError(f"session file '{path}' does not exist: check the name")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise AnchorEditError(f"session file '{path}' is damaged ({error}): use an earlier copy") from None
    if _HEADER not in metadata:
        raise AnchorEditError(f"'{path}' is not a session file: choose one that AnchorEdit saved")
    try:
        header = json.loads(metadata[_HEADER])
        if header["version"] > VERSION:
            raise AnchorEditError(
                f"session file '{path}' has format {header['version']}, this program reads up to {VERSION}: "
                "update AnchorEdit"
            )
        return _memory(header, tensors)
    except AnchorEditError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AnchorEditError(f"session file '{path}' is damaged ({reason}): use an earlier copy") from None


def _memory(header: dict, tensors: dict[str, Tensor]) -> AnchorMemory:
    latents, entries = tensors["latents"].float(), header["turns"]
    texts = tensors["text"].float().split([entry["text_rows"] for entry in entries])
    if len(latents) != len(entries):
        raise ValueError(f"{len(latents)} latents for {len(entries)} turns")
    turns = tuple(
        Turn(latent, entry["instruction"], text, entry["seed"], entry["settings"], tensors.get(f"mask_{number}"))
        for number, (latent, text, entry) in enumerate(zip(latents.unbind(), texts, entries, strict=True))
    )
    return AnchorMemory(
        turns,
        _unpack_picture(tensors["picture"]),
        Geometry.from_json(header["geometry"]),
        MemoryPolicy.from_json(header["policy"]),
        header["latent_space"],
        header["model"],
    )


def _pack_picture(picture: Tensor) -> Tensor:
    """Bytes where the picture came from bytes, so that the file is small; else float32. Lossless either way."""
    packed = (picture * 255).round().to(torch.uint8)
    return packed if torch.equal(_unpack_picture(packed), picture) else picture.contiguous()


def _unpack_picture(stored: Tensor) -> Tensor:
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored
