"""Check how often the judge accepts what is right, and what is wrong in one known way.

    python -m benchmark judge --sessions 200 --turn 3 --out runs/judge.json

Every image is one edit of a held-out session, drawn by the studio, and then:

    oracle      nothing                                            must be accepted
    round trip  through the bundled VAE and back                   must be accepted
    unchanged   the image before (null edits left out)             must be rejected, as all that follow
    another     another edit
    shifted     by 2 pixels, across or down by turns
    identity    another creature with all the right attributes
    painted     the whole image in the colour of what should have changed
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from anchoredit_model.networks.vae import ImageVAE
from anchoredit_model.pipeline import TINY
from studio.instructions import sample_edit
from studio.judge import Judge, Thresholds
from studio.render import render
from studio.scene import SUBJECT_TRAITS, TRAIT, Scenes
from studio.sessions import Sessions, held_out_generator, python_rng, sample_sessions

from .run_folder import write_json

_SIZE = 128  # pixels
_SHIFT = 2  # pixels
_OPACITY = 0.7  # of the paint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, default=200, help="(default: 200)")
    parser.add_argument(
        "--turn", type=int, default=3, help="which edit of each session; all kinds occur from 2 on (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out scenes (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")


def main(args: argparse.Namespace) -> int:
    generator = held_out_generator(args.seed)
    sessions = sample_sessions(args.sessions, args.turn, generator)
    before, edits = sessions.scenes[args.turn - 1], sessions.edits[args.turn - 1]
    source, judge, report = render(before, _SIZE, _SIZE), Judge(), {}
    print("| case | accepted | followed | preservation | identity |\n|---|---|---|---|---|")
    for name, images in cases(sessions, args.turn, generator):
        counted = [n for n, edit in enumerate(edits) if name not in ("unchanged", "painted") or edit.kind != "null"]
        verdict = judge.judge(images[counted], source[counted], before[counted], [edits[n] for n in counted])
        parts = (verdict.success, verdict.followed, verdict.preservation, verdict.identity)
        shares = [part.float().mean().item() for part in parts]
        report[name] = {"images": len(counted), "accepted": round(shares[0], 4)}
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)
    if args.out:
        write_json(report, args.out)
    return 0


def cases(sessions: Sessions, turn: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Yield each case's name and images [N, 3, H, W]."""
    before, after = sessions.scenes[turn - 1], sessions.scenes[turn]
    source, correct = render(before, _SIZE, _SIZE), render(after, _SIZE, _SIZE)
    yield "oracle", correct
    vae = ImageVAE.from_pretrained(TINY / "vae")
    with torch.no_grad():
        yield "round trip", torch.cat([vae.decode(vae.encode(part)).clamp(0, 1) for part in correct.split(8)])
    yield "unchanged", source
    yield "another", render(after.with_attributes(_other_edits(before, after, generator)), _SIZE, _SIZE)
    yield "shifted", torch.stack([image.roll(_SHIFT, dims=-1 - n % 2) for n, image in enumerate(correct)])
    columns = [TRAIT[name] for name in SUBJECT_TRAITS]
    identity = after.identity.clone()
    identity[:, columns] = torch.rand(len(identity), len(columns), generator=generator)
    yield "identity", render(Scenes(after.attributes, identity), _SIZE, _SIZE)
    yield "painted", _painted(source, correct)


def _other_edits(before: Scenes, after: Scenes, generator: torch.Generator) -> Tensor:
    """Return the attributes [N, A] after an edit whose result differs from that of the instruction."""
    rng: random.Random = python_rng(generator)
    rows = []
    for attributes, wanted in zip(before.attributes.tolist(), after.attributes.tolist(), strict=True):
        other = wanted
        while other == wanted:
            other = sample_edit([attributes], rng).apply(attributes)
        rows.append(other)
    return torch.tensor(rows)


def _painted(source: Tensor, correct: Tensor) -> Tensor:
    """Return the whole image under a coat of the mean colour that the changed part should have."""
    changed = ((source - correct).abs().amax(dim=1, keepdim=True) > Thresholds().shows).float()
    colour = (correct * changed).sum(dim=(2, 3), keepdim=True) / changed.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return _OPACITY * colour + (1 - _OPACITY) * source.mean(dim=1, keepdim=True)
