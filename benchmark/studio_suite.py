"""Suite `studio`: sessions of held-out scenes, edited turn by turn and checked by the studio itself.

    python -m benchmark run --suite studio --sessions 200 --turns 6 --seed 1 --out runs/benchmark

`DIR/report.json` has `followed_by_turn`, `damage_by_turn` (mean difference from the truth where the edit changes
nothing, in 0..1), each kind of instruction at turn 1 and over all turns, the settings and a `cost` section;
`DIR/sheet.png` shows the first sessions above the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch

from anchoredit_model.images import save_image
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from train.instructions import KINDS
from train.judge import damage, followed
from train.render import render
from train.studio import held_out_generator, sample_sessions

_SIZE = 128  # pixels, the side of a scene
_SHOWN = 8  # sessions on the sheet


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark run", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=("studio",), default="studio")
    parser.add_argument("--editor", choices=("pipeline",), default="pipeline")
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1, help="of the held-out scenes, which training never meets")
    parser.add_argument("--steps", type=int, help="sampler steps per turn (default: the model's)")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--window", type=int)
    parser.add_argument("--anchor-frames", type=int)
    parser.add_argument("--history", choices=("stream", "refresh"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    pipeline = AnchorEditPipeline.from_pretrained(args.model, getattr(torch, args.dtype))
    options = {"anchor_frames": args.anchor_frames, "window": args.window, "history": args.history}
    policy = pipeline.default_policy.with_options(**options)
    sessions = sample_sessions(args.sessions, args.turns, held_out_generator(args.seed))
    sources = render(sessions.scenes[0], _SIZE, _SIZE)

    results = torch.zeros(args.sessions, args.turns, dtype=torch.bool)
    damages = torch.zeros(args.sessions, args.turns)
    shown: list[torch.Tensor] = []
    seconds = []
    for number in range(args.sessions):
        memory = pipeline.start(sources[number], policy)
        pictures = []
        for turn in range(args.turns):
            began = time.perf_counter()
            memory = pipeline.turn(memory, sessions.texts[turn][number], number, args.steps, args.guidance)
            pictures.append(pipeline.picture(memory))
            seconds.append(time.perf_counter() - began)
            facts = (pictures[-1][None], sessions.scenes[turn][number : number + 1], [sessions.edits[turn][number]])
            results[number, turn], damages[number, turn] = followed(*facts)[0], damage(*facts)[0]
        if number < _SHOWN:
            truth = [render(scenes[number : number + 1], _SIZE, _SIZE)[0] for scenes in sessions.scenes]
            shown += [torch.cat([sources[number], *pictures], dim=2), torch.cat(truth, dim=2)]
        if (number + 1) % 20 == 0:
            print(
                f"{number + 1} sessions, followed at turn 1: {results[: number + 1, 0].float().mean():.3f}", flush=True
            )

    report = {
        "suite": "studio",
        "model": pipeline.fingerprint[:16],
        "settings": {
            "sessions": args.sessions,
            "turns": args.turns,
            "seed": args.seed,
            "policy": policy.to_json(),
            "steps": args.steps,
            "guidance": args.guidance,
            "dtype": args.dtype,
        },
        "followed_by_turn": [round(value, 4) for value in results.float().mean(dim=0).tolist()],
        "damage_by_turn": [round(value, 4) for value in damages.mean(dim=0).tolist()],
        "followed_by_kind": _by_kind(sessions.edits, results),
        "cost": {"seconds_per_turn": round(sum(seconds) / len(seconds), 4)},
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    save_image(torch.cat(shown, dim=1), args.out / "sheet.png")
    _print(report)
    return 0


def _by_kind(edits: list, results: torch.Tensor) -> dict[str, dict]:
    """Per kind: how many at turn 1 and over all turns, and the share that followed."""
    counts: dict[str, dict[str, list[bool]]] = {kind: defaultdict(list) for kind in KINDS}
    for turn, row in enumerate(edits):
        for number, edit in enumerate(row):
            counts[edit.kind]["all turns"].append(bool(results[number, turn]))
            if turn == 0:
                counts[edit.kind]["turn 1"].append(bool(results[number, turn]))
    return {
        kind: {
            when: {"count": len(values[when]), "followed": round(sum(values[when]) / max(1, len(values[when])), 4)}
            for when in ("turn 1", "all turns")
        }
        for kind, values in counts.items()
    }


def _print(report: dict) -> None:
    print("| turn | " + " | ".join(str(n + 1) for n in range(len(report["followed_by_turn"]))) + " |")
    print("|---" * (len(report["followed_by_turn"]) + 1) + "|")
    print("| followed | " + " | ".join(f"{value:.1%}" for value in report["followed_by_turn"]) + " |")
    print("| damage elsewhere | " + " | ".join(f"{value:.3f}" for value in report["damage_by_turn"]) + " |\n")
    print("| kind | at turn 1 | over all turns |\n|---|---|---|")
    for kind, row in report["followed_by_kind"].items():
        cells = [f"{row[when]['followed']:.1%} of {row[when]['count']}" for when in ("turn 1", "all turns")]
        print(f"| {kind} | {' | '.join(cells)} |")
