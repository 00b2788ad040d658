"""The judge under test: how often it accepts what is right and what is wrong in one known way.

    python -m benchmark judge --sessions 200 --turn 3 --out runs/judge.json

Every image is one edit of a held-out session, drawn by the studio, and then:

    truth       nothing                                         must be accepted
    round trip  through the bundled VAE and back                must be accepted
    unchanged   the image before (null edits left out)        must be refused, as all that follow
    another     another edit done
    shifted     by 2 pixels, across or down in turn
    identity    another creature that has all the right facts
    painted     the whole image in the colour of what should have changed
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

from anchoredit_model.networks.vae import ImageVAE
from anchoredit_model.pipeline import TINY
from studio.instructions import Edit, sample_edit
from studio.judge import Judge, Thresholds
from studio.render import render
from studio.scene import SUBJECT_TRAITS, TRAIT, Scenes
from studio.sessions import Sessions, held_out_generator, python_rng, sample_sessions

from .run_folder import write_json

_SIZE = 128  # pixels
_SHIFT = 2  # pixels
_OPAQUE = 0.7  # of the paint


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument(
        "--turn", type=int, default=3, help="which edit of each session; all kinds occur from the second"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    generator = held_out_generator(args.seed)
    sessions = sample_sessions(args.sessions, args.turn, generator)
    before, edits = sessions.scenes[args.turn - 1], sessions.edits[args.turn - 1]
    source, judge, report = render(before, _SIZE, _SIZE), Judge(), {}
    print("| case | accepted | followed | untouched | identity |\n|---|---|---|---|---|")
    for name, images in cases(sessions, args.turn, generator):
        counted = [n for n, edit in enumerate(edits) if name not in ("unchanged", "painted") or edit.kind != "null"]
        verdict = judge.judge(images[counted], source[counted], before[counted], [edits[n] for n in counted])
        parts = (verdict.success, verdict.followed, verdict.preservation, verdict.identity)
        shares = [part.float().mean().item() for part in parts]
        report[name] = {"images": len(counted), "accepted": round(shares[0], 4)}
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, args.out)
    return 0


def cases(sessions: Sessions, turn: int, generator: torch.Generator):
    """Yield each case's name and images [N, 3, H, W]."""
    before, after, edits = sessions.scenes[turn - 1], sessions.scenes[turn], sessions.edits[turn - 1]
    source, truth = render(before, _SIZE, _SIZE), render(after, _SIZE, _SIZE)
    yield "oracle", truth
    vae = ImageVAE.from_pretrained(TINY / "vae")
    with torch.no_grad():
        yield "round trip", torch.cat([vae.decode(vae.encode(part)).clamp(0, 1) for part in truth.split(8)])
    yield "unchanged", source
    yield "another", render(after.with_attributes(_other_edits(before, after, edits, generator)), _SIZE, _SIZE)
    yield "shifted", torch.stack([image.roll(_SHIFT, dims=-1 - n % 2) for n, image in enumerate(truth)])
    columns = [TRAIT[name] for name in SUBJECT_TRAITS]
    identity = after.identity.clone()
    identity[:, columns] = torch.rand(len(identity), len(columns), generator=generator)
    yield "identity", render(Scenes(after.attributes, identity), _SIZE, _SIZE)
    yield "painted", _painted(source, truth)


def _other_edits(before: Scenes, after: Scenes, edits: list[Edit], generator: torch.Generator) -> Tensor:
    """Attributes [N, F] after some edit that leads elsewhere than the one that was asked for."""
    rng: random.Random = python_rng(generator)
    rows = []
    for facts, wanted in zip(before.attributes.tolist(), after.attributes.tolist(), strict=True):
        other = wanted
        while other == wanted:
            other = sample_edit([facts], rng).apply(facts)
        rows.append(other)
    return torch.tensor(rows)


def _painted(source: Tensor, truth: Tensor) -> Tensor:
    """Return the whole image under a coat of the mean colour that the changed part should have."""
    changed = ((source - truth).abs().amax(dim=1, keepdim=True) > Thresholds().shows).float()
    colour = (truth * changed).sum(dim=(2, 3), keepdim=True) / changed.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return _OPAQUE * colour + (1 - _OPAQUE) * source.mean(dim=1, keepdim=True)
