"""The same sessions through every way of remembering, several times with other noise, and what each is worth.

    python -m benchmark ablate --out runs/ablation                                       # the bundled model
    python -m benchmark ablate --only "anchor and window" --model "stage 1=runs/v/stage 1/model" \\
        --model "stages 1 and 2=runs/v/stages 1 and 2/model" --steps 8 --out runs/stages      # trained variants

Every run is one of `python -m benchmark run`, in OUT/NAME/PROTOCOL-TURNS-seed-N; what is finished is not done again,
and other protocols or numbers of turns may be added later. Sessions of `chain` and `no-op` begin as shorter ones do, so
of several numbers of turns only the largest is run. OUT/ablation.json lists all runs found there, each with its
variant, protocol, turns, sampling seed, success and identity by turn; OUT/report is `python -m benchmark report OUT`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchoredit_model.errors import AnchorEditError

from .pooled import Trial, find_trials
from .protocols import PROTOCOLS
from .report import markdown, write_report
from .run import main as run
from .run_folder import write_json

_EVERYTHING = "1000"  # turns: more than any session has
VARIANTS: Mapping[str, tuple[str, ...]] = {  # how each is asked for
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
    "chain-vae": ("--editor", "chain-vae"),
    "bidirectional": ("--editor", "bidirectional", "--anchor-frames", "1", "--window", "4"),
}
_BEGIN_ALIKE = ("chain", "no-op")  # however many turns are asked for
_OF_OTHER_WEIGHTS = ("bidirectional",)  # not asked for by default: other weights would only fail
_REPORT = "report"
_PASSED_ON = ("sessions", "seed", "size", "steps", "guidance", "dtype", "device")


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    variants = args.only or [name for name in VARIANTS if name not in _OF_OTHER_WEIGHTS]
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
    trials = find_trials([args.out / name for name in (*asked, *others)])
    shorter = args.turns if alike else ()
    write_json([entry for trial in trials for entry in _entries(trial, shorter)], args.out / "ablation.json")
    write_report(trials, args.out / _REPORT)
    for trial in trials:
        print(f"\n{trial.title}\n\n{markdown(trial)}")
    return 0


def _name(label: str, variant: str, variants: int) -> str:
    """Of the runs of one variant of one model."""
    if not label:
        return variant
    return label if variants == 1 else f"{label}, {variant}"


def _run(args: argparse.Namespace, name: str, variant: str, model: str | None, turns: int, seed: int) -> None:
    """One run; a finished one is only read."""
    folder = args.out / name / f"{args.protocol}-{turns}-seed-{seed}"
    print(f"{name}, {args.protocol}, {turns} turns, sampling seed {seed}", flush=True)
    options = [*VARIANTS[variant], "--protocol", args.protocol, "--turns", turns, "--sampling-seed", seed]
    for option in _PASSED_ON:
        if (value := getattr(args, option)) is not None:
            options += [f"--{option}", value]
    options += ["--model", model] if model else []
    run([*map(str, options), "--out", str(folder)])


def _entries(trial: Trial, shorter: Sequence[int]) -> list[dict[str, Any]]:
    """A line per run, and one for each number of `shorter` turns: means by turn, None where no turn counts."""
    entries = []
    whole = trial.settings["turns"]
    lengths = [*sorted(turns for turns in set(shorter) if turns < whole), whole]
    if trial.settings["protocol"] not in _BEGIN_ALIKE:
        lengths = [whole]
    for group in trial.groups:
        for made in group.runs:
            by_turn = {
                f"{name}_by_turn": [figure and figure["mean"] for figure in made.report[f"{name}_by_turn"]]
                for name in ("success", "identity")
            }
            seed = made.settings["editor_settings"].get("sampling_seed")
            facts = {"sessions": trial.settings["sessions"], "seed": seed}
            for turns in lengths:
                cut = {name: figures[:turns] for name, figures in by_turn.items()}
                named = {"variant": group.name, "protocol": trial.settings["protocol"], "turns": turns}
                entries.append({**named, **facts, **cut})
    return entries


def _labelled(text: str) -> tuple[str, str]:
    label, equals, path = text.partition("=")
    if not equals or not label or not path:
        raise AnchorEditError(f"--model {text!r} has no label: write LABEL=FOLDER")
    if Path(label).name != label:
        raise AnchorEditError(f"--model {text!r} has a label that is no name of a folder: leave out slashes")
    return label, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs; what is there is not done again")
    parser.add_argument("--only", action="append", default=[], choices=tuple(VARIANTS), help="may be repeated")
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
