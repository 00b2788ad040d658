"""Run the same sessions through every ablation of the session memory, with several sampling seeds each.

    python -m benchmark ablate --out runs/ablation                                       # the bundled model
    python -m benchmark ablate --only "anchor and window" --model "stage 1=runs/v/stage 1/model" \\
        --model "stages 1 and 2=runs/v/stages 1 and 2/model" --steps 8 --out runs/stages      # training ablations

Every run is one of `python -m benchmark run`, in OUT/NAME/PROTOCOL-TURNS-seed-N. Finished runs are kept, so other
protocols or numbers of turns may be added later. Sessions of `chain` and `no-op` begin as shorter ones do: only the
largest number of turns is run, and such a run is listed at 12, 24 and 50 turns as well. OUT/ablation.json lists all
runs, with means by turn; OUT/comparison is `python -m benchmark compare OUT`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchoredit_model.errors import AnchorEditError
from studio.instructions import LANGUAGES

from .editors.base import EditorOptions
from .editors.registry import add_sampling_options
from .report.comparison import write_comparisons
from .report.editor_runs import Comparison, find_comparisons
from .report.metrics import PROBE_ACCURACY, STUDIO_METRICS, intervals_by_turn, turn_table
from .run import run_suite
from .run_folder import write_json
from .suites.protocols import PROTOCOLS
from .suites.studio import StudioSuite

_EVERYTHING = 1000  # turns: more than any session has
ABLATIONS: Mapping[str, tuple[str, EditorOptions]] = {
    "anchor and window": ("pipeline", EditorOptions(anchor_frames=1, window=4)),
    "anchor and window, refreshed": ("pipeline", EditorOptions(anchor_frames=1, window=4, history="refresh")),
    "anchor and window, absolute slots": ("pipeline", EditorOptions(anchor_frames=1, window=4, slot_mode="absolute")),
    "full history": ("pipeline", EditorOptions(anchor_frames=1, window=_EVERYTHING)),
    "window only": ("pipeline", EditorOptions(anchor_frames=0, window=5)),
    "previous only": ("previous-only", EditorOptions()),
    "decode-reencode": ("decode-reencode", EditorOptions()),
    "bidirectional": ("bidirectional", EditorOptions(anchor_frames=1, window=4)),
}
_OTHER_WEIGHTS = ("bidirectional",)  # only on demand: it needs weights that were trained like that
_EXTENSIBLE = ("chain", "no-op")  # protocols whose sessions begin as shorter ones do
_LENGTHS = (12, 24, 50)  # turns at which these are listed
_LISTED = {name: STUDIO_METRICS[name] for name in ("success", "identity", PROBE_ACCURACY)}  # in ablation.json
_COMPARISON = "comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all runs")
    parser.add_argument(
        "--only", action="append", default=[], choices=tuple(ABLATIONS), metavar="NAME", help="ablation; repeatable"
    )
    parser.add_argument("--model", action="append", default=[], metavar="LABEL=PATH", help="repeatable")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="chain", help="(default: chain)")
    parser.add_argument("--turns", type=int, nargs="+", default=[12], help="(default: 12)")
    parser.add_argument("--sampling-seeds", type=int, default=3, help="number of runs of each (default: 3)")
    parser.add_argument("--sessions", type=int, default=60, help="(default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out scenes (default: 1)")
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels (default: 128)")
    add_sampling_options(parser)


def main(args: argparse.Namespace) -> int:
    if args.sampling_seeds < 1:
        raise AnchorEditError(f"--sampling-seeds must be 1 or more, got {args.sampling_seeds}", "Use 1 or more")
    ablations = args.only or [name for name in ABLATIONS if name not in _OTHER_WEIGHTS]
    named = {
        _name(label, ablation, len(ablations)): (ablation, model)
        for label, model in dict(map(_labelled, args.model)).items() or [("", None)]
        for ablation in ablations
    }
    for turns in [max(args.turns)] if args.protocol in _EXTENSIBLE else args.turns:
        for seed in range(args.sampling_seeds):
            for name, (ablation, model) in named.items():
                _run(args, name, ablation, model, turns, seed)
    others = sorted(folder.name for folder in args.out.iterdir() if folder.name not in (*named, _COMPARISON))
    comparisons = find_comparisons([args.out / name for name in (*named, *others)])
    write_json(_entries(comparisons, {*_LENGTHS, *args.turns}), args.out / "ablation.json")
    print("\n" + write_comparisons(comparisons, args.out / _COMPARISON))
    return 0


def _name(label: str, ablation: str, count: int) -> str:
    """Return the name of an ablation of a model, of `count` ablations."""
    if not label:
        return ablation
    return label if count == 1 else f"{label}, {ablation}"


def _run(args: argparse.Namespace, name: str, ablation: str, model: Path | None, turns: int, seed: int) -> None:
    """Run once, unless there is a finished run, which may have more turns if it begins as this one would."""
    if args.protocol in _EXTENSIBLE:
        turns = max([turns, *_finished_turns(args.out / name, args.protocol, seed)])
    print(f"{name}, {args.protocol}, {turns} turns, sampling seed {seed}", flush=True)
    suite = StudioSuite(args.protocol, turns, args.sessions, args.seed, args.size, LANGUAGES)
    editor, options = ABLATIONS[ablation]
    sampling = {"steps": args.steps, "cfg": args.cfg, "dtype": args.dtype, "device": args.device}
    options = replace(options, model=model, sampling_seed=seed, **sampling)
    run_suite(suite, editor, options, args.out / name / f"{args.protocol}-{turns}-seed-{seed}")


def _finished_turns(folder: Path, protocol: str, seed: int) -> list[int]:
    """Return the numbers of turns of the finished runs in the folder of an ablation."""
    runs = folder.glob(f"{protocol}-*-seed-{seed}/report.json")
    return [int(report.parent.name.removeprefix(f"{protocol}-").partition("-")[0]) for report in runs]


def _entries(comparisons: Sequence[Comparison], lengths: Iterable[int]) -> list[dict[str, Any]]:
    """Return an entry per run, and one for each of the `lengths` that it begins with.

    {"ablation", "protocol", "turns", "sessions", "sampling_seed", "by_turn": {metric: [means, null where none counts]}}
    """
    entries: dict[tuple, dict[str, Any]] = {}
    for comparison in comparisons:
        protocol, whole = comparison.settings["protocol"], comparison.settings["turns"]
        shorter = sorted(turns for turns in lengths if turns < whole) if protocol in _EXTENSIBLE else []
        for turns in (*shorter, whole):
            for editor in comparison.editors:
                for run in editor.runs:
                    seed = run.settings["editor_settings"].get("sampling_seed")
                    entry = {"ablation": editor.name, "protocol": protocol, "turns": turns}
                    entry |= {"sessions": comparison.settings["sessions"], "sampling_seed": seed}
                    by_turn = intervals_by_turn(turn_table(run.records, _LISTED))
                    means = {name: [v and v["mean"] for v in values[:turns]] for name, values in by_turn.items()}
                    key = (*entry.values(), comparison.settings["seed"])
                    entries.setdefault(key, entry | {"by_turn": means})
    return list(entries.values())


def _labelled(text: str) -> tuple[str, Path]:
    label, equals, path = text.partition("=")
    if not equals or not label or not path:
        raise AnchorEditError(f"--model must be LABEL=PATH, got {text!r}", "Write a label, =, and a path")
    if Path(label).name != label or label == "..":
        raise AnchorEditError(f"the label of --model names a folder, got {label!r}", "Leave out slashes and dots")
    return label, Path(path)
