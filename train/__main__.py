"""python -m train {vae,text,pretrain}: each stage's own `--help` says what it takes."""

from __future__ import annotations

import importlib
import sys

STAGES = ("vae", "text", "pretrain")


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in STAGES:
        print(f"usage: python -m train {{{','.join(STAGES)}}} [options]", file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    importlib.import_module(f"train.{argv[0]}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
