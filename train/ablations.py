"""The curriculum taken apart: variants that lack one component each, trained with the same budget.

    python -m train ablations --config tiny --set pretrain.minutes=15 --set causal.minutes=20 --out runs/variants
    python -m train ablations ... --only "without self-rollout"        # one of them

All share one first stage with its budget, but the one that is to lack a part of it, and then have the second stage's
budget each: more of stage 1, stage 2, or stages 2 and 3 together. OUT/NAME/model is ready for

    python -m benchmark run --model "OUT/NAME/model" --editor pipeline ...        # bidirectional for that one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anchoredit_model.errors import AnchorEditError

from .config import Config, StageConfig
from .config_io import merge
from .curriculum import Curriculum
from .engine import CHECKPOINT
from .export import run as export

_SHARED = "shared"  # folder of the first stage that most start from
_NO_IDENTITY = {"pretrain": {"identity": 0.0}}
# What is trained after the first stage, and what is different.
ABLATIONS: Mapping[str, tuple[str, dict]] = {
    "stage 1": ("pretrain", {}),
    "stages 1 and 2": ("causal", {}),
    "without self-rollout": ("causal", {"causal": {"rollout": "none"}}),
    "without degradation": ("causal", {"causal": {"degrade": False}}),
    "without identity mapping": ("causal", _NO_IDENTITY),
    "bidirectional": ("causal", {"causal": {"forcing": "bidirectional", "rollout": "none", "on_policy_prob": 0.0}}),
    "stages 1 to 3": ("distill", {}),
}


def run(config: Config, out: Path, only: Sequence[str] = (), resume: bool = False) -> bool:
    """Train and export the variants; False if that was interrupted. With `resume`, finished ones are left alone."""
    if unknown := [name for name in only if name not in ABLATIONS]:
        names = ", ".join(map(repr, ABLATIONS))
        raise AnchorEditError(f"there is no ablation {unknown[0]!r}", f"Choose one of {names}")
    return all(_train(name, config, out, resume) for name in only or ABLATIONS)


def _train(name: str, config: Config, out: Path, resume: bool) -> bool:
    last, changes = ABLATIONS[name]
    config, folder = _with_shared_parts(merge(config, changes), out), out / name
    if resume and (folder / "model").is_dir():
        return True
    first = folder if changes is _NO_IDENTITY else out / _SHARED
    if not Curriculum(config, first).run("pretrain", resume=True):
        return False
    start = str(first / "pretrain" / CHECKPOINT)
    if last == "pretrain":
        config = merge(config, {"parts": {"transformer": start}, "pretrain": _budget(config.causal)})
    else:
        config = merge(config, {"causal": {"init": start}})
    stages = ("causal", "distill") if last == "distill" else (last,)
    if last == "distill":  # its time is part of the second stage's
        config = merge(config, {"causal": _budget(config.causal, config.distill.consistency, config.distill.matching)})
    if not all(Curriculum(config, folder).run(stage, resume) for stage in stages):
        return False
    export(config, folder)
    return True


def _budget(whole: StageConfig, *parts: StageConfig) -> dict[str, float]:
    """Return what of a stage's budget others leave."""
    left = {name: getattr(whole, name) - sum(getattr(part, name) for part in parts) for name in ("steps", "minutes")}
    if min(left.values()) < 0 or not any(left.values()):
        raise AnchorEditError(
            "the third stage's budget is part of the second's, of which it leaves nothing",
            "Raise that of causal, or lower those of distill.consistency and distill.matching",
        )
    return left


def _with_shared_parts(config: Config, out: Path) -> Config:
    """All variants read one cache, and the VAE and text encoder of `out` unless the config names others."""
    shared = Curriculum(config, out)
    parts = replace(config.parts, vae=str(shared.vae_folder()), text=str(shared.text_folder()))
    return replace(config, parts=parts, data=replace(config.data, cache=config.data.cache or str(out / "cache")))
