"""Latents and text states, encoded on first use and kept on disk.

    encoders = Encoders("wan/vae", "wan/text_encoder", device="cuda", dtype=torch.bfloat16)
    data = prepare(shard_parts("runs/shards"), encoders, "runs/cache", WorkSizes(), rank, world_size, barrier=barrier)

A part of a source becomes one safetensors file of latents. Its name has the fingerprint of the part, its folder that of
the VAE and the work sizes, so latents are never used with another VAE, other images or other sizes. Every distinct
text is encoded once. Files are written completely or not at all; a killed run continues with its current part. Tensors
are memory-mapped, so the processes of a machine share them.

Shapes: T edits; H, W pixels; h, w their latents; R rows of a text; E width of the text encoder. The zero columns up to
the model's text_dim are not stored.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.checkpoint.fingerprint import fingerprint
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.text_encoder import TextEncoder, find_encoder
from anchoredit_model.networks.vae import CONFIG_NAME, WEIGHTS_NAME, ImageVAE

from .dataset import CachedGroup, EncodedSessions, Shape, TextTable
from .session import EditSession, Part, Problem, Problems, WorkSizes
from .workers import split, stream

_FORMAT = 1  # version of the files, part of the cache key
_PIXELS = 4 * 1024 * 1024  # per forward of the VAE: four images of the largest work size
_TEXTS_PER_FILE = 4096
_COMPILED_FROM = 8  # parts: from here on a minute of compiling the VAE pays
_ENCODER_WEIGHTS = ("encoder.", "quant_conv.")  # a VAE with another decoder keeps its latents
_STAR = " star"  # at the end of a group's name
_ID_LENGTH = 16  # hex digits of a hash in a name


class Encoders:
    """Load a VAE and a text encoder from their folders, only if something is not in the cache yet.

    They compute in `dtype`, but texts on a CPU in float32, as in the pipeline; the results are stored in bfloat16.
    `compiled`: encode many images by compiled loops.
    """

    def __init__(
        self,
        vae: str | Path,
        text: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ):
        self.vae_folder, self.text_folder = Path(vae), Path(text)
        self.device, self.dtype, self.compiled = torch.device(device), dtype, compiled
        self.text_dtype = torch.float32 if self.device.type == "cpu" else dtype

    @cached_property
    def vae(self) -> ImageVAE:
        """Return the VAE, loaded on first use."""
        return ImageVAE.from_pretrained(self.vae_folder, self.device, self.dtype)

    def vae_for(self, parts: int) -> ImageVAE:
        """Return the VAE to encode so many parts of a source: another, compiled one if there are enough."""
        if not self.compiled or parts < _COMPILED_FROM:
            return self.vae
        vae = ImageVAE.from_pretrained(self.vae_folder, self.device, self.dtype)
        cast(nn.Module, vae.model.encoder).compile()
        return vae

    @cached_property
    def text(self) -> TextEncoder:
        """Return the text encoder, loaded on first use."""
        return TextEncoder.from_pretrained(self.text_folder, device=self.device, dtype=self.text_dtype)

    @cached_property
    def vae_fingerprint(self) -> str:
        """Return a hash of what determines latents: the weights of the encoder, the configuration, the dtype."""
        config = json.loads(_content(self.vae_folder / CONFIG_NAME))
        settings = sorted((name, value) for name, value in config.items() if not name.startswith("_"))
        weights = _weights(self.vae_folder / WEIGHTS_NAME)
        encoder = {name: tensor for name, tensor in weights.items() if name.startswith(_ENCODER_WEIGHTS)}
        return _id(fingerprint(encoder), settings, self.dtype)

    @cached_property
    def text_fingerprint(self) -> str:
        """Return a hash of what determines text states: the weights, the configuration, the vocabulary, the dtype."""
        folder, vocabulary = find_encoder(self.text_folder)
        weights = [fingerprint(_weights(path)) for path in sorted(folder.glob("*.safetensors"))]
        return _id(weights, _content(folder / "config.json"), _content(vocabulary), self.text_dtype)


def encode_images(vae: ImageVAE, images: Tensor) -> Tensor:
    """Encode images [N, 3, H, W], uint8 or 0..1, as latents [N, C, h, w] bfloat16 on the VAE's device, in batches."""
    batch = max(1, _PIXELS // images[0, 0].numel())
    scale = 1 if images.is_floating_point() else 255
    return torch.cat([vae.encode(some.float() / scale).bfloat16() for some in images.split(batch)])


def encode_texts(encoder: TextEncoder, texts: list[str]) -> list[Tensor]:
    """Encode texts as states [R, E] bfloat16 on the encoder's device."""
    width = encoder.model.config.d_model
    return [states[:, :width].bfloat16() for states in encoder.encode(texts)]


def prepare(
    parts: Sequence[Part],
    encoders: Encoders,
    folder: str | Path,
    sizes: WorkSizes,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    barrier: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda line: None,
) -> EncodedSessions:
    """Return all sessions of a source, encoded; what the cache in `folder` lacks is added first.

    Every process encodes its share (`split`) and waits for the others at `barrier`; all must see the same `folder`.
    `workers` are processes that decode images. `report` gets a line for every new file. Raises AnchorEditError if no
    session is usable or a file cannot be written or read.
    """
    folder = Path(folder)
    latents = folder / "latents" / _id(_FORMAT, encoders.vae_fingerprint, asdict(sizes))
    texts = folder / "texts" / _id(_FORMAT, encoders.text_fingerprint)
    files = [latents / f"{part.name}-{_id(part.fingerprint)}.safetensors" for part in parts]
    if twice := [path for path, count in Counter(files).items() if count > 1]:
        raise AnchorEditError(f"the parts of the data must differ, got {twice[0].stem} twice", "Name every source once")
    mine = split(list(zip(parts, files)), rank, world_size)
    _encode_parts([(part, path) for part, path in mine if not path.exists()], encoders, sizes, workers, report)
    barrier()
    groups: list[CachedGroup] = []
    problems = Problems()
    for path in files:
        found, wrong = _read_part(path)
        groups += found
        problems.found += wrong
    if not groups:
        raise AnchorEditError(
            f"no usable session in {len(parts)} parts", f"{'; '.join(problems.summary()) or 'no parts'}"
        )
    turns = chain.from_iterable(turns for group in groups for turns in group.instructions)
    needed = {"", *(text for turn in turns for text in turn.values())}
    _encode_texts(needed, texts, encoders, rank, world_size, report)
    barrier()
    states = {text: rows for path in sorted(texts.glob("*.safetensors")) for text, rows in _read_texts(path).items()}
    made_by = {"latents": _id([f"{path.parent.name}/{path.name}" for path in files]), "texts": texts.name}
    return EncodedSessions(groups, TextTable({text: states[text] for text in needed}), problems, made_by)


def _encode_parts(jobs: list[tuple[Part, Path]], encoders: Encoders, sizes: WorkSizes, workers: int, report) -> None:
    """Encode every part to its file; parts are encoded separately, so that files do not depend on each other."""
    if not jobs:
        return
    vae = encoders.vae_for(len(jobs))
    encoding: dict[int, _PartEncoder] = defaultdict(lambda: _PartEncoder(vae))
    for number, item in stream([part for part, _ in jobs], sizes, workers):
        if isinstance(item, EditSession):
            encoding[number].add(item)
        else:
            part, path = jobs[number]
            count = encoding[number].save(path, item)
            del encoding[number]
            report(f"encoded {part.name}: {count} sessions, {len(item.found)} problems")


class _PartEncoder:
    """Encode the sessions of one part in batches of the same shape and layout."""

    def __init__(self, vae: ImageVAE):
        self.vae = vae
        self.waiting: dict[str, list[EditSession]] = defaultdict(list)  # by the name of their group
        self.latents: dict[str, list[Tensor]] = defaultdict(list)
        self.rows: dict[str, list] = defaultdict(list)

    def add(self, session: EditSession) -> None:
        """Add a session; encode those of its shape and layout if they fill a batch."""
        height, width = session.images.shape[-2:]
        name = _name((session.turns, height, width), session.star)
        self.waiting[name].append(session)
        if sum(waiting.images[:, 0].numel() for waiting in self.waiting[name]) >= _PIXELS:
            self._encode(name)

    def save(self, path: Path, problems: Problems) -> int:
        """Write the file of the part and return its number of sessions."""
        for name in list(self.waiting):
            self._encode(name)
        tensors = {name: torch.cat(latents) for name, latents in self.latents.items()}
        # one entry, because safetensors writes several in any order
        content = {"sessions": self.rows, "problems": [asdict(problem) for problem in problems.found]}
        metadata = {"content": json.dumps(content, ensure_ascii=False)}
        with atomic_write(path, "latents", make_folder=True) as unfinished:
            save_file(tensors, unfinished, metadata)
        return sum(map(len, self.rows.values()))

    def _encode(self, name: str) -> None:
        sessions = self.waiting.pop(name)
        images = torch.cat([session.images for session in sessions])  # [n (T + 1), 3, H, W]
        latents = encode_images(self.vae, images).cpu()
        self.latents[name].append(latents.unflatten(0, (len(sessions), -1)))
        self.rows[name] += [[session.key, session.instructions] for session in sessions]


def _read_part(path: Path) -> tuple[list[CachedGroup], list[Problem]]:
    with _opened(path) as file:
        content = json.loads(file.metadata()["content"])
        groups = []
        for name, rows in content["sessions"].items():
            keys, instructions = map(list, zip(*rows))
            groups.append(CachedGroup(_shape(name), file.get_tensor(name), keys, instructions, name.endswith(_STAR)))
    return groups, [Problem(**problem) for problem in content["problems"]]


def _encode_texts(needed: Iterable[str], folder: Path, encoders: Encoders, rank: int, world_size: int, report) -> None:
    """Encode the texts of this process that no file has.

    Texts are divided by their hash: the share of a process must not depend on what others have written so far.
    """
    known = {text for path in folder.glob("*.safetensors") for text in _read_texts(path)}
    missing = sorted(text for text in needed if text not in known and int(_id(text), 16) % world_size == rank)
    for start in range(0, len(missing), _TEXTS_PER_FILE):
        texts = missing[start : start + _TEXTS_PER_FILE]
        rows = [states.cpu() for states in encode_texts(encoders.text, texts)]
        ends = torch.tensor([len(states) for states in rows]).cumsum(0)
        with atomic_write(folder / f"{_id(texts)}.safetensors", "text states", make_folder=True) as unfinished:
            metadata = {"texts": json.dumps(texts, ensure_ascii=False)}
            save_file({"states": torch.cat(rows), "ends": ends}, unfinished, metadata)
        report(f"encoded {len(texts)} texts")


def _read_texts(path: Path) -> dict[str, Tensor]:
    """Return the states [R, E] by text."""
    with _opened(path) as file:
        texts, states, ends = json.loads(file.metadata()["texts"]), file.get_tensor("states"), file.get_tensor("ends")
        starts = [0, *ends.tolist()]
        return {text: states[start:end] for text, start, end in zip(texts, starts, ends.tolist())}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of the cache; raise AnchorEditError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise AnchorEditError(
            f"cache file '{path}' is damaged ({error})", "Delete it, it will be encoded again"
        ) from error


def _name(shape: Shape, star: bool) -> str:
    """Return the name of a group in a file of latents."""
    return "x".join(map(str, shape)) + (_STAR if star else "")


def _shape(name: str) -> Shape:
    turns, height, width = map(int, name.removesuffix(_STAR).split("x"))
    return turns, height, width


def _id(*values: object) -> str:
    """Return a short hash of the values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:_ID_LENGTH]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnchorEditError(
            f"'{path}' cannot be read ({error.strerror})", "Give the folder of a complete model"
        ) from None


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise AnchorEditError(f"weights '{path}' cannot be read ({error})", "Copy them again") from None
