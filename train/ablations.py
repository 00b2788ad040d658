"""Ablations: the curriculum without one component each, trained with the same budget.

    python -m train ablations --config tiny --set pretrain.minutes=15 --set causal.minutes=20 --out runs/ablations
    python -m train ablations ... --only "without self-rollout"        # one of them

All share one first stage, except the ablation of a part of it, and then use the budget of the second stage: for more
of stage 1, for stage 2, or for stages 2 and 3 together. OUT/NAME/model is ready for

    python -m benchmark run --model "OUT/NAME/model" --editor pipeline ...        # "bidirectional": that editor
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

_SHARED = "shared"  # folder of the first stage that most share
_NO_IDENTITY = {"pretrain": {"identity_prob": 0.0}}
# name -> the last stage, changes of the config
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
    """Train and export the ablations; False if interrupted. With `resume`, finished ones are left unchanged."""
    if unknown := [name for name in only if name not in ABLATIONS]:
        names = ", ".join(map(repr, ABLATIONS))
        raise AnchorEditError(f"the ablation must be one of {names}, got {unknown[0]!r}", "Choose one of these")
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
    if last == "distill":  # its budget is part of the second stage's
        config = merge(config, {"causal": _budget(config.causal, config.distill.consistency, config.distill.matching)})
    if not all(Curriculum(config, folder).run(stage, resume) for stage in stages):
        return False
    export(config, folder)
    return True


def _budget(whole: StageConfig, *parts: StageConfig) -> dict[str, float]:
    """Return the budget of a stage without those of other stages."""
    left = {name: getattr(whole, name) - sum(getattr(part, name) for part in parts) for name in ("steps", "minutes")}
    if min(left.values()) < 0 or not any(left.values()):
        raise AnchorEditError(
            "the budget of causal must be larger than those of distill.consistency and distill.matching together",
            "Raise the first, or lower the others",
        )
    return left


def _with_shared_parts(config: Config, out: Path) -> Config:
    """Return the config with one cache for all ablations, and the VAE and text encoder of `out` or of the config."""
    shared = Curriculum(config, out)
    parts = replace(config.parts, vae=str(shared.vae_folder()), text=str(shared.text_folder()))
    return replace(config, parts=parts, data=replace(config.data, cache=config.data.cache or str(out / "cache")))
