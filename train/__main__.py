"""The command line of training.

    python -m train all      --config tiny --out runs/tiny
    python -m train pretrain --config wan.yaml --out runs/wan --dry-run
    python -m train causal   --config wan.yaml --set causal.batch=4 --out runs/wan --resume

`wan.yaml` says where its parts lie, see docs/training.md.

`all` makes everything in order; `variants` trains it without one component each, to compare; `data`, with options of
its own, makes and checks shards. Several processes: see train/engine.py.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from pathlib import Path
from typing import NoReturn

from anchoredit_model.errors import AnchorEditError

from .config import NAMES, Config
from .config_io import load_config
from .tiny.parts import FOLDERS, is_finished, wait_for

ORDER = ("vae", "text", "pretrain", "causal", "distill", "export")


def main(argv: list[str]) -> int:
    commands = (*ORDER, "all", "ablations", "data")
    if not argv or argv[0] not in commands:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        print(f"usage: python -m train {{{','.join(commands)}}} [options]", file=out)
        print(__doc__, file=out)
        return 0 if asked else 2
    command, rest = argv[0], argv[1:]
    try:
        if command == "data":
            importlib.import_module("train.data.cli").main(rest)
            return 0
        options = _options(command, rest)
        config = load_config(options.config, options.set)
        if options.dry_run:
            from .dry_run import missing, report

            lacking = missing(command, config, options.out)
            lines = (f"missing: {line}" for line in lacking)
            print(report(command, config, options.out), *lines, sep="\n", flush=True)
            return 2 if lacking else 0
        if command == "ablations":
            from .ablations import run as train_ablations

            return 0 if train_ablations(config, options.out, options.only, options.resume) else 130
        steps = ORDER if command == "all" else (command,)
        return 0 if all(run(step, config, options.out, options.resume, command == "all") for step in steps) else 130
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(command: str, config: Config, out: Path, resume: bool = False, skip_given: bool = False) -> bool:
    """One step of a run; False if it was interrupted. `skip_given`: parts that the config gives are not trained."""
    from .curriculum import Curriculum

    curriculum = Curriculum(config, out)
    if command in FOLDERS:
        folder = out / FOLDERS[command]
        if skip_given and (getattr(config.parts, command) or (resume and is_finished(folder))):
            return True
        if not curriculum.accelerator.is_main_process:  # one process makes it, by itself
            return wait_for(folder)
        return importlib.import_module(f"train.tiny.{command}").run(getattr(config, command), folder, resume)
    if command == "export":
        from .export import run as export

        if curriculum.accelerator.is_main_process:
            export(config, out)
        return True
    return curriculum.run(command, resume)


def _options(command: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m train {command}")
    parser.add_argument("--config", default="tiny", help=f"{', '.join(NAMES)}, or a YAML file (default: tiny)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where it was; what is finished is left alone")
    if command == "ablations":
        parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this variant; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print sizes, memory and what is missing; train nothing")
    return parser.parse_args(argv)


def leave(code: int) -> NoReturn:
    """End the program; where several processes have done their work, without waiting for the threads that joined them.

    Now and then such a thread is still about to return when the interpreter comes down, which would make a failure of
    a success. After an error the interpreter still has files to close.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        if code == 0:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be in letters that the terminal lacks
    leave(main(sys.argv[1:]))
