"""python -m benchmark {make,run,ablate,report,judge,speed,memory,patch}: how well turns are made, what they cost."""

from __future__ import annotations

import io
import sys

from anchoredit_model.errors import AnchorEditError

COMMANDS = ("make", "run", "ablate", "report", "judge", "speed", "memory", "patch")


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        print(f"usage: python -m benchmark {{{','.join(COMMANDS)}}} [options]", file=out)
        return 0 if asked else 2
    try:
        if argv[0] == "speed":
            from .speed import main as command
        elif argv[0] == "judge":
            from .judge_check import main as command
        elif argv[0] == "make":
            from .make import main as command
        elif argv[0] == "ablate":
            from .ablate import main as command
        elif argv[0] == "report":
            from .report import main as command
        elif argv[0] == "memory":
            from .memory import main as command
        elif argv[0] == "patch":
            from .patch import main as command
        else:
            from .run import main as command
        return command(argv[1:])
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be in letters that the terminal lacks
    sys.exit(main(sys.argv[1:]))
