"""Train AnchorEdit: the parts of the small model, the three stages, the exported model, the data.

    python -m train all      --config tiny --out runs/tiny
    python -m train pretrain --config wan.yaml --out runs/wan --dry-run
    python -m train causal   --config wan.yaml --set causal.batch=4 --out runs/wan --resume
    python -m train data write --out runs/shards

docs/training.md says what `wan.yaml` contains; train/engine.py, how to start several processes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from anchoredit_model.errors import AnchorEditError

from .config import NAMES
from .config_io import load_config
from .data import cli as data_cli
from .tiny.parts import FOLDERS, is_finished, wait_for

if TYPE_CHECKING:
    from .curriculum import Curriculum


def main(argv: list[str]) -> int:
    """Run a command; return 0, 1 for invalid data, 2 for an error or 130 after an interruption."""
    options = make_parser().parse_args(argv)
    try:
        return options.handler(options)
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; their help is the docstring of the function that runs them."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m train", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, step in {**STEPS, "all": run_all, "ablations": ablations}.items():
        command = commands.add_parser(name, help=step.__doc__, description=step.__doc__)
        command.add_argument("--config", default="tiny", help=f"{', '.join(NAMES)}, or a YAML file (default: tiny)")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
        command.add_argument("--out", type=Path, required=True, help="folder of the run")
        command.add_argument("--resume", action="store_true", help="continue; leave finished parts unchanged")
        command.add_argument(
            "--dry-run", action="store_true", help="print sizes, memory and missing files; train nothing"
        )
        command.set_defaults(handler=_run, command=name, step=step, only=[])
        if step is ablations:
            command.add_argument("--only", action="append", metavar="NAME", help="train this ablation; repeatable")
    data = commands.add_parser(
        "data", help=(data_cli.__doc__ or "").partition("\n")[0], description=data_cli.__doc__, formatter_class=raw
    )
    data_cli.add_commands(data.add_subparsers(metavar="COMMAND", required=True))
    return parser


def _run(options: argparse.Namespace) -> int:
    """Run one of the commands that have a config."""
    config = load_config(options.config, options.set)
    if options.dry_run:
        from .dry_run import missing, report

        lines = [f"missing: {line}" for line in missing(options.command, config, options.out)]
        print(report(options.command, config, options.out), *lines, sep="\n", flush=True)
        return 2 if lines else 0
    from .curriculum import Curriculum

    curriculum = Curriculum(config, options.out)
    extra = {"only": options.only} if options.only else {}
    return 0 if options.step(curriculum, options.resume, **extra) else 130


# Each command takes the curriculum and whether to resume, and returns False if it was interrupted.


def vae(curriculum: Curriculum, resume: bool = False) -> bool:
    """Train the small VAE on images of the studio."""
    return _train_part("vae", curriculum, resume)


def text(curriculum: Curriculum, resume: bool = False) -> bool:
    """Train the small text encoder on instructions of the studio."""
    return _train_part("text", curriculum, resume)


def pretrain(curriculum: Curriculum, resume: bool = False) -> bool:
    """Train stage 1: single edits of an image, and identity mapping."""
    return curriculum.run("pretrain", resume)


def causal(curriculum: Curriculum, resume: bool = False) -> bool:
    """Train stage 2: whole sessions, behind degraded histories and the model's own."""
    return curriculum.run("causal", resume)


def distill(curriculum: Curriculum, resume: bool = False) -> bool:
    """Train stage 3: consistency distillation, then distribution matching."""
    return curriculum.run("distill", resume)


def export(curriculum: Curriculum, resume: bool = False) -> bool:
    """Export the model of the last stage as a folder and as one file for ComfyUI."""
    from .export import run

    if curriculum.accelerator.is_main_process:
        run(curriculum.config, curriculum.out)
    return True


STEPS: dict[str, Callable[..., bool]] = {step.__name__: step for step in (vae, text, pretrain, causal, distill, export)}


def run_all(curriculum: Curriculum, resume: bool = False) -> bool:
    """Run the commands from vae to export in order, without the parts that the config gives."""

    def needed(name: str) -> bool:
        if name not in FOLDERS:
            return True
        given = getattr(curriculum.config.parts, name)
        return not given and not (resume and is_finished(curriculum.out / FOLDERS[name]))

    return all(step(curriculum, resume) for name, step in STEPS.items() if needed(name))


def ablations(curriculum: Curriculum, resume: bool = False, only: Sequence[str] = ()) -> bool:
    """Train and export the curriculum without one component each, to compare."""
    from .ablations import run

    return run(curriculum.config, curriculum.out, only, resume)


def _train_part(name: str, curriculum: Curriculum, resume: bool) -> bool:
    """Train the VAE or the text encoder in the first process; the others wait for it."""
    folder = curriculum.out / FOLDERS[name]
    if not curriculum.accelerator.is_main_process:
        return wait_for(folder)
    return importlib.import_module(f"train.tiny.{name}").run(getattr(curriculum.config, name), folder, resume)


def leave(code: int) -> NoReturn:
    """End the program; after a success of several processes, without waiting for the threads that joined them.

    Such a thread sometimes outlives the interpreter and would turn a success into a failure. After an error the
    interpreter still has files to close.
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
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have letters that the terminal lacks
    leave(main(sys.argv[1:]))
