"""Sessions through an editor, turn by turn: drawn scenes under an exact judge, or anybody's photos.

    python -m benchmark run --suite studio --protocol chain --turns 12 --sessions 60 --editor pipeline --out runs/chain
    python -m benchmark run --suite photos --photos DIR --editor comfyui --workflow my_api.json --out runs/mine

Protocols: suites/protocols.py. Photos: suites/photo_sessions.py. Editors: editors/registry.py. `DIR/report.json`:
report/run_report.py and report/photo_report.py. `DIR/sheet.png` shows the first sessions. A run that was stopped
goes on when the command is given again.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from anchoredit_model.atomic_write import atomic_write

from .editors.base import EditorOptions
from .editors.registry import DEFAULT_SERVER, EDITORS, make_editor
from .report.sheet import draw_sheet
from .run_folder import RunFolder, write_json
from .suites.registry import add_suite_options, make_suite

_SHOWN = 8  # sessions on the sheet


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    suite = make_suite(args)
    options = {field.name: getattr(args, field.name) for field in fields(EditorOptions)}
    editor = make_editor(args.editor, EditorOptions(**options), suite)
    settings = {**suite.settings, "editor": args.editor, "editor_settings": editor.settings}
    folder, sessions = RunFolder(args.out, settings), range(len(suite.names))
    for session in sessions:
        name = suite.names[session]
        if not folder.is_finished(name):
            record, images = suite.run(editor, session)
            suite.write(session, folder.make(name))  # so that it can be read back, with all that is known of it
            folder.save(name, record, images)
            print(f"session {session + 1} of {len(sessions)}: {suite.signs(record)}", flush=True)
    records = [folder.record(name) for name in suite.names]
    report = suite.report(folder.settings, records)
    write_json(report, args.out / "report.json")
    shown = enumerate(suite.names[:_SHOWN])
    sheet = draw_sheet([suite.strip(session, records[session], folder.images(name)) for session, name in shown])
    with atomic_write(args.out / "sheet.png", "sheet") as unfinished:
        sheet.save(unfinished, format="PNG")
    suite.print_report(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_suite_options(parser)
    parser.add_argument("--editor", choices=tuple(EDITORS), default="pipeline")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a stopped one goes on")
    model = parser.add_argument_group("the model", "of the editors that have one")
    model.add_argument("--model", type=Path, help="folder or weights file (default: the bundled one)")
    model.add_argument("--steps", type=int, help="sampler steps per turn (default: the model's)")
    model.add_argument("--guidance", type=float)
    model.add_argument("--dtype", choices=("float32", "bfloat16"))
    model.add_argument("--device", help="cpu (default) or cuda")
    model.add_argument("--sampling-seed", type=int, help="of the noise; the scenes stay the same (default: 0)")
    comfyui = parser.add_argument_group("a workflow", "of the editor comfyui; see benchmark/editors/comfyui.py")
    comfyui.add_argument(
        "--workflow", type=Path, help="in the API's format, with marked nodes (default: the bundled model)"
    )
    comfyui.add_argument("--server", help=f"(default: {DEFAULT_SERVER})")
    parser.add_argument("--images", type=Path, metavar="DIR", help="of the editor folder, see `benchmark export`")
    policy = parser.add_argument_group("what a turn sees", "of the editor pipeline")
    policy.add_argument("--window", type=int)
    policy.add_argument("--anchor-frames", type=int)
    policy.add_argument("--history", choices=("stream", "refresh"))
    policy.add_argument("--slots", choices=("bounded", "absolute"), help="(default: the model's)")
    return parser
