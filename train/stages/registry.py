"""The stages of the curriculum, by the command that trains them."""

from __future__ import annotations

from collections.abc import Mapping

from .causal import CausalStage
from .distill import ConsistencyStage, DistributionMatchingStage
from .pretrain import PretrainStage
from .stage import Stage

# command -> the stages that it trains, in order
STAGES: Mapping[str, tuple[type[Stage], ...]] = {
    "pretrain": (PretrainStage,),
    "causal": (CausalStage,),
    "distill": (ConsistencyStage, DistributionMatchingStage),
}
# stage -> the one whose weights it starts from
BEFORE: Mapping[str, str] = {
    "causal": "pretrain",
    "distill.consistency": "causal",
    "distill.matching": "distill.consistency",
}
