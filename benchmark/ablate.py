"""The same sessions through every way of remembering, several times with other noise, and what each is worth.

    python -m benchmark ablate --out runs/ablation                                       # the bundled model
    python -m benchmark ablate --only "anchor and window" --model "stage 1=runs/v/stage 1/model" \\
        --model "stages 1 and 2=runs/v/stages 1 and 2/model" --steps 8 --out runs/stages      # trained variants

Every run is one of `python -m benchmark run`, in OUT/NAME/PROTOCOL-TURNS-seed-N; what is finished is not done again,
and other protocols or numbers of turns may be added later. Sessions of `chain` and `no-op` begin as shorter ones do:
of several numbers of turns only the largest is run, and such a run is listed at 12, 24 and 50 turns as well.
OUT/ablation.json lists all runs found there, each with its variant, protocol, turns, sampling seed, success and
identity by turn, and whether what the protocol is about is right (`in_question_by_turn`); OUT/report is `python -m
benchmark compare OUT`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anchoredit_model.errors import AnchorEditError

from .report.comparison import markdown, write_report
from .report.editor_runs import Comparison, find_comparisons
from .report.run_report import PROBES_RIGHT
from .report.statistics import intervals
from .run import main as run
from .run_folder import write_json
from .suites.protocols import PROTOCOLS

_EVERYTHING = "1000"  # turns: more than any session has
ABLATIONS: Mapping[str, tuple[str, ...]] = {  # how each is asked for
    "anchor and window": ("--editor", "pipeline", "--anchor-frames", "1", "--window", "4"),
    "anchor and window, read again": (
        *("--editor", "pipeline", "--anchor-frames", "1", "--window", "4", "--history", "refresh"),
    ),
    "anchor and window, absolute slots": (
        *("--editor", "pipeline", "--anchor-frames", "1", "--window", "4", "--slots", "absolute"),
    ),
    "full history": ("--editor", "pipeline", "--anchor-frames", "1", "--window", _EVERYTHING),
    "window only": ("--editor", "pipeline", "--anchor-frames", "0", "--window", "5"),
    "previous only": ("--editor", "previous-only"),
    "decode-reencode": ("--editor", "decode-reencode"),
    "bidirectional": ("--editor", "bidirectional", "--anchor-frames", "1", "--window", "4"),
}
_BEGIN_ALIKE = ("chain", "no-op")  # however many turns are asked for
_LENGTHS = (12, 24, 50)  # turns at which these are listed
_OF_OTHER_WEIGHTS = ("bidirectional",)  # not asked for by default: other weights would only fail
_REPORT = "report"
_LISTED = ("success", "identity", PROBES_RIGHT)  # figures in ablation.json
_PASSED_ON = ("sessions", "seed", "size", "steps", "guidance", "dtype", "device")


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.sampling_seeds < 1:
        raise AnchorEditError(f"--sampling-seeds {args.sampling_seeds} measures nothing", "Ask for 1 or more")
    variants = args.only or [name for name in ABLATIONS if name not in _OF_OTHER_WEIGHTS]
    asked = {
        _name(label, variant, len(variants)): (variant, model)
        for label, model in dict(map(_labelled, args.model)).items() or [("", None)]
        for variant in variants
    }
    alike = args.protocol in _BEGIN_ALIKE
    for turns in [max(args.turns)] if alike else args.turns:
        for seed in range(args.sampling_seeds):
            for name, (variant, model) in asked.items():
                _run(args, name, variant, model, turns, seed)
    others = sorted(folder.name for folder in args.out.iterdir() if (folder.name not in (*asked, _REPORT)))
    comparisons = find_comparisons([args.out / name for name in (*asked, *others)])
    write_json(_entries(comparisons, {*_LENGTHS, *args.turns}), args.out / "ablation.json")
    write_report(comparisons, args.out / _REPORT)
    for comparison in comparisons:
        print(f"\n{comparison.title}\n\n{markdown(comparison)}")
    return 0


def _name(label: str, variant: str, variants: int) -> str:
    """Of the runs of one variant of one model."""
    if not label:
        return variant
    return label if variants == 1 else f"{label}, {variant}"


def _run(args: argparse.Namespace, name: str, variant: str, model: str | None, turns: int, seed: int) -> None:
    """One run; a finished one is only read, also one of more turns that begins as this would."""
    if args.protocol in _BEGIN_ALIKE:
        turns = max([turns, *_finished_turns(args.out / name, args.protocol, seed)])
    folder = args.out / name / f"{args.protocol}-{turns}-seed-{seed}"
    print(f"{name}, {args.protocol}, {turns} turns, sampling seed {seed}", flush=True)
    options = [*ABLATIONS[variant], "--protocol", args.protocol, "--turns", turns, "--sampling-seed", seed]
    for option in _PASSED_ON:
        if (value := getattr(args, option)) is not None:
            options += [f"--{option}", value]
    options += ["--model", model] if model else []
    run([*map(str, options), "--out", str(folder)])


def _finished_turns(folder: Path, protocol: str, seed: int) -> list[int]:
    """Of the finished runs of a variant by this protocol and noise."""
    runs = folder.glob(f"{protocol}-*-seed-{seed}/report.json")
    return [int(report.parent.name.removeprefix(f"{protocol}-").partition("-")[0]) for report in runs]


def _entries(comparisons: Sequence[Comparison], lengths: Iterable[int]) -> list[dict[str, Any]]:
    """Return a line per run, and one for each of the `lengths` that it begins with.

    Means by turn, None where none counts.
    """
    entries: dict[tuple, dict[str, Any]] = {}
    for comparison in comparisons:
        protocol, whole = comparison.settings["protocol"], comparison.settings["turns"]
        shorter = sorted(turns for turns in lengths if turns < whole) if protocol in _BEGIN_ALIKE else []
        for turns in (*shorter, whole):
            for group in comparison.groups:
                for number, made in enumerate(group.runs):
                    seed = made.settings["editor_settings"].get("sampling_seed")
                    named = {"variant": group.name, "protocol": protocol, "turns": turns}
                    named |= {"sessions": comparison.settings["sessions"], "seed": seed}
                    figures = {
                        f"{name.replace(' ', '_')}_by_turn": [
                            figure and figure["mean"] for figure in intervals(group.tables[name][number][:, :turns])
                        ]
                        for name in _LISTED
                    }
                    entries.setdefault((*named.values(), comparison.settings["seed"]), named | figures)
    return list(entries.values())


def _labelled(text: str) -> tuple[str, str]:
    label, equals, path = text.partition("=")
    if not equals or not label or not path:
        raise AnchorEditError(f"--model {text!r} has no label", "Write LABEL=FOLDER")
    if Path(label).name != label or label == "..":
        raise AnchorEditError(f"--model {text!r} has a label that is no name of a folder", "Leave out slashes and dots")
    return label, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs; what is there is not done again")
    parser.add_argument("--only", action="append", default=[], choices=tuple(ABLATIONS), help="may be repeated")
    parser.add_argument("--model", action="append", default=[], metavar="LABEL=PATH", help="may be repeated")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="chain")
    parser.add_argument("--turns", type=int, nargs="+", default=[12])
    parser.add_argument("--sampling-seeds", type=int, default=3, help="how often, each time with other noise")
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the held-out scenes")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--device")
    return parser
