"""Write sessions to folders, for editors that no adapter drives: a web page, a person, another program.

    python -m benchmark export --protocol chain --turns 12 --sessions 60 --out sessions
    python -m benchmark run --protocol chain --turns 12 --sessions 60 --editor folder --images sessions --out mine
    python -m benchmark export --suite photos --photos DIR --out sessions

DIR/00017/source.png is the source image of a session, DIR/00017/instructions.json its instructions, "" for a null
edit. Folders of photos have the image's name, and a turn of which more is known is an object (see
benchmark/suites/photo_sessions.py). Put the edited images DIR/00017/turn1.png, turn2.png ... beside them, each of the
source's size; the second command, with the same options, judges them. LME-Bench and the DIR/sessions of every run
have this layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .editors.folder import check_instructions
from .run_folder import make_folder
from .suites.registry import add_suite_options, make_suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the sessions")


def main(args: argparse.Namespace) -> int:
    suite = make_suite(args)
    for session, name in enumerate(suite.names):
        folder = args.out / name
        check_instructions(folder, suite.instructions(session), "Choose another --out")
        suite.write(session, make_folder(folder))
    print(f"{len(suite.names)} sessions of {suite.settings['turns']} turns in {args.out}")
    return 0
