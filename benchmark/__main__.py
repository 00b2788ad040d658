"""python -m benchmark COMMAND ...: how well turns are made, what they cost.

run      sessions through an editor, judged
compare  runs side by side: tables, a page
ablate   every way of remembering, each with several noises
export   sessions as folders, for others to edit
judge    what the judge accepts and what it does not
cost     latency of turns, memory of cards, overhead of the patch in ComfyUI
"""

from __future__ import annotations

import importlib
import io
import sys

from anchoredit_model.errors import AnchorEditError

COMMANDS = {
    "run": "run",
    "compare": "report.comparison",
    "ablate": "ablate",
    "export": "export",
    "judge": "judge_check",
    "cost latency": "cost.latency",
    "cost memory": "cost.memory",
    "cost patch": "cost.patch",
}


def main(argv: list[str]) -> int:
    """Run a command; return the exit code."""
    words = 2 if argv[:1] == ["cost"] else 1
    module = COMMANDS.get(" ".join(argv[:words]))
    if module is None:
        asked = bool(argv) and argv[-1] in ("-h", "--help")
        print(
            f"usage: python -m benchmark {{{','.join(COMMANDS)}}} [options]\n\n{__doc__}",
            file=None if asked else sys.stderr,
        )
        return 0 if asked else 2
    try:
        return importlib.import_module(f"benchmark.{module}").main(argv[words:])
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be in letters that the terminal lacks
    sys.exit(main(sys.argv[1:]))
