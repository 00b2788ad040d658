"""The command line: `python -m anchoredit_model edit IMAGE -i "..." --out DIR`.

What a turn made is on disk before the next one starts, so a Ctrl-C or a full disk loses no finished turn.
Mistakes of the user are one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import uuid
from pathlib import Path

from .errors import AnchorEditError

SESSION_NAME = "session.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished turns are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anchoredit_model", description="Edit one picture over many turns; it stays the same picture."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    edit = commands.add_parser("edit", help="edit a picture, one instruction after the other")
    edit.set_defaults(run=edit_command)
    edit.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="the source picture (not with --session)")
    edit.add_argument("-i", "--instruction", action="append", metavar="TEXT", help="one turn; repeat for more")
    edit.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and session")
    edit.add_argument("--model", type=Path, metavar="DIR_OR_FILE", help="default: the bundled tiny model")
    edit.add_argument("--session", type=Path, metavar="FILE", help="go on with a saved session")
    edit.add_argument("--seed", type=int, default=0, metavar="N", help="of the session (default 0)")
    edit.add_argument("--steps", type=int, metavar="N", help="sampler steps per turn (default: the model's)")
    edit.add_argument("--guidance", type=float, metavar="G", help="1 = off (default: the model's); doubles the time")
    edit.add_argument("--window", type=int, metavar="N", help="recent turns that a turn sees")
    edit.add_argument("--anchor-frames", type=int, metavar="N", help="first turns that every turn sees (default 1)")
    edit.add_argument("--history", choices=("stream", "refresh"), help="how remembered turns are kept")
    edit.add_argument("--mask", type=Path, metavar="FILE", help="white where these turns may change the picture")
    edit.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    edit.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    edit.add_argument("--json", action="store_true", help="print one JSON object per turn")
    return parser


def edit_command(arguments: argparse.Namespace) -> int:
    """`edit`: writes turn_00.png (the source), turn_01.png ..., filmstrip.png and session.safetensors."""
    if not arguments.instruction:
        raise AnchorEditError('there is no instruction: add one or more, e.g. -i "make it blue"')
    if (arguments.image is None) == (arguments.session is None):
        raise AnchorEditError("give a picture to start from, or --session FILE to go on with, and not both")
    # inputs are read and the folder is tried before the slow import of the model
    from .images import load_image

    source = load_image(arguments.image) if arguments.image else None
    mask = load_image(arguments.mask).mean(dim=0, keepdim=True) if arguments.mask else None
    _prepare_folder(arguments.out, arguments.session)

    from .pipeline import TINY, AnchorEditPipeline
    from .session import load_session

    saved = load_session(arguments.session) if arguments.session else None
    device, dtype = _device_and_dtype(arguments.device, arguments.dtype)
    pipeline = AnchorEditPipeline.from_pretrained(arguments.model or TINY, dtype, device)
    options = {"anchor_frames": arguments.anchor_frames, "window": arguments.window, "history": arguments.history}
    policy = (saved.policy if saved else pipeline.default_policy).with_options(**options)
    memory = saved.fork(**options) if saved else pipeline.start(source, policy)
    say = _quiet if arguments.json else print
    say(memory.geometry.describe())
    if saved and saved.model and saved.model != pipeline.reader.identity:
        print("note: the session was made with another model; it goes on with this one", file=sys.stderr)

    record = _Record(pipeline, arguments.out)
    for number in range(len(memory)):
        record.add(memory, number)
    total = memory.last + len(arguments.instruction)
    for instruction in arguments.instruction:
        if not instruction.strip():
            print("note: the instruction is empty: a null edit, the picture is made again as it is", file=sys.stderr)
        began = time.perf_counter()
        memory = pipeline.turn(memory, instruction, arguments.seed, arguments.steps, arguments.guidance, mask)
        seconds = time.perf_counter() - began
        path = record.add(memory, memory.last)
        record.finish(memory)
        if arguments.json:
            row = {"turn": memory.last, "instruction": instruction.strip(), "seconds": round(seconds, 3)}
            print(json.dumps({**row, "image": str(path)}), flush=True)
        else:
            print(f"turn {memory.last}/{total}  {seconds:5.1f} s  {path}  {instruction.strip()}", flush=True)
    return 0


class _Record:
    """The output folder: pictures by turn, the filmstrip and the session."""

    def __init__(self, pipeline, folder: Path):
        self.pipeline = pipeline
        self.folder = folder
        self.pictures = []

    def add(self, memory, turn: int) -> Path:
        """Writes the picture of one turn."""
        from .images import save_image

        picture = self.pipeline.picture(memory, turn)
        self.pictures.append(picture)
        path = self.folder / f"turn_{turn:02d}.png"
        save_image(picture, path, {"instruction": memory.turns[turn].instruction})
        return path

    def finish(self, memory) -> None:
        """Writes the session and the filmstrip of all turns so far."""
        from .filmstrip import filmstrip
        from .images import save_image, to_tensor
        from .session import save_session

        save_session(memory, self.folder / SESSION_NAME)
        captions = [turn.instruction or "(null edit)" for turn in memory.turns[1:]]
        save_image(to_tensor(filmstrip(self.pictures, captions)), self.folder / "filmstrip.png")


def _prepare_folder(folder: Path, session: Path | None) -> None:
    """Makes sure that the folder can be written and holds no other session."""
    present = folder / SESSION_NAME
    if present.exists() and not (session and session.exists() and present.samefile(session)):
        raise AnchorEditError(
            f"folder '{folder}' already holds a session: choose another --out, or go on with --session {present}"
        )
    trial = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"AnchorEdit")
    except OSError as error:
        reason = error.strerror or str(error)
        raise AnchorEditError(f"cannot write in '{folder}' ({reason}): choose another --out") from None
    finally:
        trial.unlink(missing_ok=True)


def _device_and_dtype(device: str, dtype: str):
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise AnchorEditError("--device cuda: torch finds no CUDA device here: use --device cpu")
    chosen = "cuda" if device != "cpu" and cuda else "cpu"
    if dtype == "auto":  # on a CPU the bundled model is fast enough to be exact
        dtype = "bfloat16" if chosen == "cuda" else "float32"
    return chosen, getattr(torch, dtype)


def _quiet(*_: object) -> None:
    """What `--json` does with lines for people."""
