"""The command line: `python -m anchoredit_model edit IMAGE -i "..." --out DIR`.

The result of a turn is on disk before the next one starts, so a Ctrl-C or a full disk loses no finished turn. A
mistake of the user is one line on stderr and exit code 2. Imports of torch and the model come after the arguments
are parsed, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from . import TINY
from .errors import AnchorEditError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from .memory.anchor_memory import AnchorMemory
    from .pipeline import AnchorEditPipeline

SESSION_NAME = "session.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack the letters of an instruction
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # those of libraries are meant for programmers
            return arguments.run(arguments)
    except AnchorEditError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("stopped; finished turns are kept", file=sys.stderr)
        return 130
    except ImportError as error:
        remedy = "Run: pip install -U 'anchoredit[standalone]'"
        return _fail(AnchorEditError(f"a Python package is missing or too old ({error})", remedy))
    except OSError as error:
        problem = f"cannot use {_file_of(error)} ({error.strerror or error})"
        code = _fail(AnchorEditError(problem, "Check that it exists and may be used"))
        try:
            sys.stdout.flush()
        except OSError:  # its reader is gone or its disk full: discard the rest, or Python would complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)):
            raise
        remedy = "Use a smaller --window, --dtype bfloat16 or --device cpu"
        return _fail(AnchorEditError("out of memory; finished turns are kept", remedy))


def _fail(error: AnchorEditError) -> int:
    print("error:", "\\n".join(str(error).splitlines()), file=sys.stderr)
    return 2


def _file_of(error: OSError) -> str:
    if error.filename is not None:
        return f"'{error.filename}'"
    return "the standard output" if isinstance(error, BrokenPipeError) else "a file or the standard output"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anchoredit_model", description="Edit one image over many turns without drift."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    edit = commands.add_parser("edit", help="edit an image, one instruction after the other")
    edit.set_defaults(run=edit_command)
    edit.add_argument("image", metavar="IMAGE", nargs="?", type=_path, help="source image (not with --session)")
    edit.add_argument("-i", "--instruction", action="append", metavar="TEXT", help="instruction of a turn; repeatable")
    edit.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder for images and session file")
    edit.add_argument("--model", type=_path, metavar="DIR_OR_FILE", help="model (default: the bundled one)")
    edit.add_argument("--session", type=_path, metavar="FILE", help="session file to continue")
    edit.add_argument("--seed", type=int, metavar="N", help="seed of the noise (default: the session's, at first 0)")
    edit.add_argument("--resolution", type=int, metavar="N", help="working resolution: side of a square in pixels")
    edit.add_argument("--steps", type=int, metavar="N", help="sampling steps per turn (default: the model's)")
    # no `choices`: their registry imports torch
    edit.add_argument("--sampler", metavar="NAME", help="a sampler of samplers.py (default: the model's)")
    edit.add_argument("--cfg", type=float, metavar="G", help="guidance scale, 1 = off (default: the model's)")
    edit.add_argument("--window", type=int, metavar="N", help="number of recent turns that a turn sees")
    edit.add_argument("--anchor-frames", type=int, metavar="N", help="number of first turns that every turn sees")
    edit.add_argument("--history", choices=("stream", "refresh"), help="how the K/V of earlier turns are kept")
    edit.add_argument("--mask", type=_path, metavar="FILE", help="image, white where the turns may change the source")
    edit.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: auto)")
    edit.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="dtype of the weights (default: auto)"
    )
    edit.add_argument("--json", action="store_true", help="one JSON object per turn on stdout")
    return parser


def _path(text: str) -> Path:
    """Parse a path, `~` included, which no shell expands in `--out=~/edits`."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.expanduser(text))


def edit_command(arguments: argparse.Namespace) -> int:
    """Run `edit`: write turn_00.png (the source), turn_01.png ..., filmstrip.png and session.safetensors."""
    if not arguments.instruction:
        raise AnchorEditError("there is no instruction", 'Add one or more, e.g. -i "make it blue"')
    if (arguments.image is None) == (arguments.session is None):
        raise AnchorEditError(
            "IMAGE and --session FILE exclude each other and one is needed",
            "Give an image to start from, or a session to continue",
        )
    if arguments.resolution is not None and arguments.session is not None:
        raise AnchorEditError(
            f"--resolution {arguments.resolution} cannot change the size of a session",
            "Leave --resolution out, or give an image",
        )
    # inputs are read and the folder is tried before the slow import of the model
    from .images import load_image
    from .memory.session_file import load_session

    source = load_image(arguments.image) if arguments.image else None
    saved = load_session(arguments.session) if arguments.session else None
    mask = load_image(arguments.mask).amax(dim=0, keepdim=True) if arguments.mask else None
    device, dtype = _device_and_dtype(arguments.device, arguments.dtype)
    _prepare_folder(arguments.out, arguments.session)

    from transformers.utils import logging as transformers_logging

    from .pipeline import AnchorEditPipeline

    transformers_logging.disable_progress_bar()
    pipeline = AnchorEditPipeline.from_pretrained(arguments.model or TINY, dtype, device)
    options = {"anchor_frames": arguments.anchor_frames, "window": arguments.window, "history": arguments.history}
    if source is None:
        assert saved is not None  # one of both was asked for
        memory = saved.with_policy(**options)
    else:
        memory = pipeline.start(source, pipeline.default_policy.with_options(**options), arguments.resolution)
    if not arguments.json:
        print(memory.geometry.describe())
    if saved and saved.model and saved.model != pipeline.kv_cache.fingerprint:
        print(
            "note: the session was made with another model, dtype or device; it continues with these", file=sys.stderr
        )
    seed = arguments.seed if arguments.seed is not None else memory.turns[-1].seed or 0
    sampling = {"steps": arguments.steps, "cfg": arguments.cfg, "sampler": arguments.sampler}

    output = _OutputFolder(pipeline, arguments.out)
    total = memory.last + len(arguments.instruction)
    for instruction in arguments.instruction:
        if not instruction.strip():
            print("note: the instruction is empty: a null edit generates the image again as it is", file=sys.stderr)
        began = time.perf_counter()
        memory = pipeline.turn(memory, instruction, seed, mask=mask, **sampling)
        seconds = time.perf_counter() - began
        path = output.write(memory)
        if arguments.json:
            row = {"turn": memory.last, "instruction": instruction.strip(), "seconds": round(seconds, 3)}
            print(json.dumps({**row, "image": str(path)}), flush=True)
        else:
            line = " ".join(instruction.split())
            print(f"turn {memory.last}/{total}  {seconds:5.1f} s  {path}  {line}", flush=True)
    return 0


class _OutputFolder:
    """Write the session, its images by turn and the filmstrip.

    Only thumbnails of earlier images are kept, so that a long session needs no more system RAM than a short one.
    """

    def __init__(self, pipeline: AnchorEditPipeline, folder: Path):
        self.pipeline = pipeline
        self.folder = folder
        self.newest: Tensor | None = None
        self.thumbnails: list[Image.Image] = []

    def write(self, memory: AnchorMemory) -> Path:
        """Write what is new, the session first, since all else follows from it; return the last image's path."""
        from .filmstrip import contact_sheet, thumbnail
        from .images import save_image, to_tensor
        from .memory.session_file import save_session

        save_session(memory, self.folder / SESSION_NAME)
        for turn in range(len(self.thumbnails), len(memory)):
            self.newest = self.pipeline.image(memory, turn, self.newest)
            self.thumbnails.append(thumbnail(self.newest))
            path = self._path(turn)
            if turn == memory.last or not path.exists():  # an image that an earlier run wrote stays
                save_image(self.newest, path, {"instruction": memory.turns[turn].instruction})
        captions = [turn.instruction or "(null edit)" for turn in memory.turns[1:]]
        save_image(to_tensor(contact_sheet(self.thumbnails, captions)), self.folder / "filmstrip.png")
        return self._path(memory.last)

    def _path(self, turn: int) -> Path:
        return self.folder / f"turn_{turn:02d}.png"


def _prepare_folder(folder: Path, session: Path | None) -> None:
    """Refuse a folder that cannot be written, or that holds results of another session."""
    present = folder / SESSION_NAME
    trial = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"AnchorEdit")
        results = (present, folder / "filmstrip.png", *sorted(folder.glob("turn_[0-9]*.png")))
        taken = [file.name for file in results if file.exists()]
        own = session is not None and present.exists() and present.samefile(session)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AnchorEditError(f"cannot write in '{folder}' ({reason})", "Choose another --out") from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    if taken and not own:
        remedy = f", or continue it with --session '{present}'" if present.name in taken else ""
        raise AnchorEditError(f"folder '{folder}' already holds {taken[0]}", f"Choose another --out{remedy}")


def _device_and_dtype(device: str, dtype: str) -> tuple[str, torch.dtype]:
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise AnchorEditError("--device is cuda, but torch finds no CUDA device", "Use --device cpu")
    chosen = "cuda" if device != "cpu" and cuda else "cpu"
    if dtype == "auto":  # on a CPU the bundled model is fast enough to be exact
        dtype = "bfloat16" if chosen == "cuda" else "float32"
    return chosen, getattr(torch, dtype)
