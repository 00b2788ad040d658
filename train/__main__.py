"""python -m train {dataset,vae,text,pretrain,export}: each stage's own `--help` says what it takes."""

from __future__ import annotations

import importlib
import sys

from anchoredit_model.errors import AnchorEditError

STAGES = ("dataset", "vae", "text", "pretrain", "export")


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in STAGES:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        print(f"usage: python -m train {{{','.join(STAGES)}}} [options]", file=out)
        return 0 if asked else 2
    try:
        importlib.import_module(f"train.{argv[0]}").main(argv[1:])
    except AnchorEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
