"""The command line of the benchmark: what editors do to an image over many turns, and what a turn costs.

docs/benchmark.md describes the commands, the protocols and the tables. Every command has its own --help.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Mapping, Sequence

from anchoredit_model.errors import AnchorEditError

COMMANDS = {  # name: (module, help)
    "run": ("benchmark.run", "edit sessions with one editor and judge the images"),
    "compare": ("benchmark.report.comparison", "compare runs: tables, plots and filmstrips on one page"),
    "ablate": ("benchmark.ablate", "run every ablation of the session memory, with several seeds each"),
    "export": ("benchmark.export", "write sessions to folders, to be edited elsewhere"),
    "judge": ("benchmark.judge_check", "check what the judge accepts and rejects"),
}
COST_COMMANDS = {
    "latency": ("benchmark.cost.latency", "time the turns of long sessions"),
    "memory": ("benchmark.cost.memory", "count the bytes that a turn needs on a GPU"),
    "patch": ("benchmark.cost.patch", "time the attention patch inside ComfyUI"),
}


class _Command(argparse.ArgumentParser):
    """A parser whose options come from a module, imported only if the command is used: each needs other packages.

    The module has a docstring, `add_arguments(parser)` and `main(args)`, which returns the exit code.
    """

    def __init__(self, module: str | None = None, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.module = module

    def parse_known_args(self, args=None, namespace=None):
        if self.module:
            try:
                command = importlib.import_module(self.module)
            except ModuleNotFoundError as error:
                raise AnchorEditError(
                    f"this command needs the package '{error.name}'", "Run `pip install -e '.[standalone,benchmark]'`"
                ) from error
            self.description = command.__doc__
            command.add_arguments(self)
            self.set_defaults(command=command.main)
        return super().parse_known_args(args, namespace)


def execute(argv: Sequence[str]) -> int:
    """Run a command and return its exit code. Raises AnchorEditError if it cannot be run."""
    parser = _Command(prog="python -m benchmark", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add(commands, COMMANDS)
    cost = commands.add_parser("cost", help="measure latency, device memory or the overhead in ComfyUI")
    _add(cost.add_subparsers(metavar="COST", required=True), COST_COMMANDS)
    args = parser.parse_args(argv)
    return args.command(args)


def _add(commands: argparse._SubParsersAction[_Command], modules: Mapping[str, tuple[str, str]]) -> None:
    for name, (module, text) in modules.items():
        commands.add_parser(name, module=module, help=text)


def main(argv: Sequence[str]) -> int:
    """Run a command; print an error in one line."""
    try:
        return execute(argv)
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have letters that the terminal lacks
    sys.exit(main(sys.argv[1:]))
