"""Edit sessions with one editor, turn by turn, and judge the images.

    python -m benchmark run --suite studio --protocol chain --turns 12 --sessions 60 --editor pipeline --out runs/chain
    python -m benchmark run --suite photos --photos DIR --editor comfyui --workflow my_api.json --out runs/mine

Suites: drawn scenes under an exact judge (protocols: benchmark/suites/protocols.py), or any photos (layouts:
benchmark/suites/photo_sessions.py). OUT/report.json holds every metric, OUT/sheet.png shows the first sessions.
The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchoredit_model.atomic_write import atomic_write

from .editors.base import EditorOptions
from .editors.registry import add_editor_options, editor_options, make_editor
from .report.run_report import make_report, print_report
from .report.sheet import draw_sheet, draw_strip
from .run_folder import RunFolder, write_json
from .suites.base import Suite
from .suites.registry import add_suite_options, make_suite

_SHEET_SESSIONS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_options(parser)
    add_editor_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")


def main(args: argparse.Namespace) -> int:
    print_report(run_suite(make_suite(args), args.editor, editor_options(args), args.out))
    return 0


def run_suite(suite: Suite, editor_name: str, options: EditorOptions, out: Path) -> dict[str, Any]:
    """Run all sessions that are not finished in the folder `out`, and return the report, as OUT/report.json has it."""
    editor = make_editor(editor_name, options, suite)
    folder = RunFolder(out, {**suite.settings, "editor": editor_name, "editor_settings": editor.settings})
    for session, name in enumerate(suite.names):
        if not folder.is_finished(name):
            record, images = suite.run(editor, session)
            suite.write(session, folder.make(name))  # the folder can then be read as a set of sessions
            folder.save(name, record, images)
            print(f"session {session + 1} of {len(suite.names)}: {suite.progress(record)}", flush=True)
    records = [folder.record(name) for name in suite.names]
    report = make_report(folder.settings, records)
    write_json(report, out / "report.json")
    shown = list(enumerate(suite.names))[:_SHEET_SESSIONS]
    strips = [draw_strip(records[n], folder.images(name), suite.oracle_images(n)) for n, name in shown]
    with atomic_write(out / "sheet.png", "sheet") as unfinished:
        draw_sheet(strips).save(unfinished, format="PNG")
    return report
