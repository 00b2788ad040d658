"""Sessions written out, for editors that no adapter drives: a web page, a person, a program of its own.

    python -m benchmark export --protocol chain --turns 12 --sessions 60 --out sessions
    python -m benchmark run --protocol chain --turns 12 --sessions 60 --editor folder --images sessions --out mine
    python -m benchmark export --suite photos --photos DIR --out sessions

DIR/00017/source.png is a session's first image and DIR/00017/instructions.json lists what is asked, "" being nothing;
of photos the folder has the image's name, and turns of which more is known are objects (see
suites/photo_sessions.py).
Whoever edits puts DIR/00017/turn1.png, turn2.png ... beside them, each of the source's size, and the second command,
asked for the same sessions, judges them. This is the layout of LME-Bench, and of DIR/sessions of every run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anchoredit_model.errors import AnchorEditError

from .editors.folder import check_asked
from .suites.registry import add_suite_options, make_suite


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    suite = make_suite(args)
    for session, name in enumerate(suite.names):
        folder = args.out / name
        check_asked(folder, suite.asked(session), "Choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnchorEditError(f"'{folder}' cannot be made ({error.strerror})", "Choose another --out") from None
        suite.write(session, folder)
    print(f"{len(suite.names)} sessions of {suite.settings['turns']} turns in {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_suite_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the sessions")
    return parser
