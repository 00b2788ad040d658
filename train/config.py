"""All settings of a training run as small frozen dataclasses, and the named configs.

    tiny            our own small model, from scratch, on a CPU or a GPU
    wan-1.3b        Wan 2.1 1.3B, all weights
    wan-1.3b-lora   the same with low-rank adapters, on one GPU
    wan-14b         Wan 2.1 14B, all weights, sharded over many GPUs

`train.config_io` merges a YAML file and `--set key=value` into one of them. Learning rates, momenta and grids of the
larger ones are those of the published code (https://github.com/xuhang07/AnchorEdit).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from anchoredit_model.config import EditConfig, TransformerConfig
from anchoredit_model.errors import AnchorEditError

from .stages.degrade import DegradationConfig
from .stages.timesteps import TimestepConfig

_FOUR_STEPS = (1000.0, 750.0, 500.0, 250.0)


@dataclass(frozen=True)
class DataConfig:
    """Configure where the sessions come from.

    path          folder of shards (`python -m train data`), relative to the working directory; empty: the studio
    cache         folder of encoded sessions, which several runs may share; empty: under --out
    limit         use only this many files of `path`; 0: all
    workers       processes that decode images before they are encoded
    stars         studio sessions of `star_turns` edits that all start from the source: for stage 1
    chains        studio sessions of `chain_turns` edits that each start from the image before: for stages 2 and 3
    shares        how often the studio samples a kind of edit, relative to 1: [[resize, 5], ['null', 0.5]]
    preview       studio sessions that are sampled for the log and never trained on; with a `path` the log shows its
                  first sessions, which are trained on
    compile       render, and on a CPU encode, with compiled loops where there are enough sessions
    english_prob  how often a session in several languages is used in English; the others share the rest
    seed          of the studio, the order of the data and the choice of languages
    """

    path: str = ""
    cache: str = ""
    limit: int = 0
    workers: int = 0
    stars: int = 19_456
    star_turns: int = 4
    chains: int = 12_288
    chain_turns: int = 5
    shares: tuple[tuple[str, float], ...] = ()
    preview: int = 16
    compile: bool = True
    english_prob: float = 0.8
    seed: int = 1


@dataclass(frozen=True)
class VaeConfig:
    """Configure the small VAE, trained on `pool` images.

    `decoder_only` continues with the decoder of a finished one, so that all latents stay valid.
    """

    minutes: float = 13.0
    pool: int = 16_384
    decoder_only: bool = False
    base_dim: int = 16
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class TextConfig:
    """Configure the small text encoder.

    `min_accuracy` on held-out texts, over all slots; training fails below it.
    """

    steps: int = 800
    pool: int = 20_000
    min_accuracy: float = 0.97
    seed: int = 0


@dataclass(frozen=True)
class PartsConfig:
    """Name finished parts; this run trains a missing VAE or text encoder itself, under --out.

    transformer  weights of the first stage: any file or folder that `anchoredit_model` reads, or "random"
    vae          folder with a diffusers AutoencoderKLWan
    text         folder with a umT5 encoder and its spiece.model
    """

    transformer: str = ""
    vae: str = ""
    text: str = ""


@dataclass(frozen=True)
class EngineConfig:
    """Configure how training runs, the same for all stages.

    seed             of the initial weights, new adapters and all noise; the order of the data has data.seed
    precision        "bfloat16": matrices are multiplied in it, weights and optimisers stay float32; or "float32"
    parallel         "ddp": each process holds everything; "fsdp": weights, gradients and optimisers are sharded
    compile          compile the transformer block by block, with one short compilation for all of them
    checkpointing    recompute activations in the backward pass instead of keeping them
    save_minutes     between training states; save_steps as well, if not 0
    log_steps        between lines of the log
    sample_steps     between grids of samples; 0: none
    sample_sessions  rows of such a grid
    """

    seed: int = 1
    precision: str = "bfloat16"
    parallel: str = "ddp"
    compile: bool = True
    checkpointing: bool = False
    save_minutes: float = 5.0
    save_steps: int = 0
    log_steps: int = 20
    sample_steps: int = 500
    sample_sessions: int = 4

    def __post_init__(self):
        _one_of("engine.precision", self.precision, ("bfloat16", "float32"))
        _one_of("engine.parallel", self.parallel, ("ddp", "fsdp"))
        _at_least(1, "engine.log_steps", self.log_steps)
        for name in ("save_minutes", "save_steps", "sample_steps"):
            _at_least(0, f"engine.{name}", getattr(self, name))


@dataclass(frozen=True)
class LoraConfig:
    """Configure low-rank adapters (https://arxiv.org/abs/2106.09685), trained instead of all weights; rank 0: none.

    All stages continue with the same adapters, so that the last LoRA file belongs to the weights of the first stage. A
    stage with an `init` of its own starts with new adapters for that.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")

    def __post_init__(self):
        _at_least(0, "lora.rank", self.rank)


@dataclass(frozen=True)
class OptimiserConfig:
    """Configure an optimiser.

    `kind` "muon" optimises the matrices of the blocks with Muon (https://kellerjordan.github.io/posts/muon/) and the
    rest with AdamW; "adamw" optimises everything with AdamW.

    The learning rate rises over the first share `warm_up` of the budget, is constant, and falls to zero over the last
    share `decay`.
    """

    kind: str = "adamw"
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 10.0
    warm_up: float = 0.01
    decay: float = 0.0

    def __post_init__(self):
        _one_of("optimiser.kind", self.kind, ("muon", "adamw"))

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share `progress` of the budget."""
        rising = progress / self.warm_up if self.warm_up else 1.0
        falling = (1 - progress) / self.decay if self.decay else 1.0
        return self.lr * min(1.0, rising, max(0.0, falling))


@dataclass(frozen=True)
class StageConfig:
    """Configure what all stages have in common.

    init            initial weights; empty: those of the stage before
    steps, minutes  the budget, whichever is used up first; 0: no limit. Schedules run over it.
    batch           sessions in one forward of one process
    micro_batches   such batches per step, divided among the processes: must be a multiple of their number
    ema             decay of the exponential moving average of the weights; less in the first steps
    """

    init: str = ""
    steps: int = 0
    minutes: float = 0.0
    batch: int = 1
    micro_batches: int = 1
    ema: float = 0.999
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self):
        if self.batch < 1 or self.micro_batches < 1:
            raise AnchorEditError(
                f"batch and micro_batches must be 1 or more, got {self.batch} and {self.micro_batches}",
                "Set both to 1 or more",
            )


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Configure stage 1: one edit of a source at a time.

    times                of the noisy edits
    identity_prob        how often the instruction is null and the target is the source itself
    instruction_dropout  how often the instruction alone is null, for guidance
    edit_region_weight   extra weight of the region that an edit changes, relative to the whole image
    """

    times: TimestepConfig = field(default_factory=TimestepConfig)
    identity_prob: float = 0.1
    instruction_dropout: float = 0.05
    edit_region_weight: float = 0.0


@dataclass(frozen=True)
class CausalConfig(StageConfig):
    """Configure stage 2: whole sessions, each turn behind a history as at inference.

    forcing              "teacher": every noisy turn behind a history at t = 0, all in one forward; "diffusion": one
                         sequence of noisy frames, some of them behind a history at t = 0; "bidirectional": one noisy
                         turn and a history that attends to it, as in Wan's own model, only to compare
    clean_history_prob   how often the history is at t = 0 in diffusion forcing
    times                of the noisy turns
    first_turns, turns   sessions grow from `first_turns` to `turns`, which they reach at the share `turns_end` of the
                         budget
    turn_weight          alpha: a turn at position p = 0..1 of the session weighs 1 + alpha * p
    edit_region_weight   as in `PretrainConfig`
    instruction_dropout  how often an instruction is null, for guidance
    on_policy_prob       how often the noisy turns are not the noisy truth but the sampler's own output on its way to
                         one of `times.sampler_timesteps`, so that its later steps learn to correct the earlier ones;
                         only in teacher forcing, for a model that is sampled by re-noising at those times
    degrade              whether histories are degraded, by `degradations`
    rollout              the form of self-rollout: "cached", as inference does it, "one_pass" or "none"
    rollout_prob         probability that a frame of the history is the model's own output, reached at the share
                         `rollout_end` of the budget; 0 before the share `rollout_start`
    rollout_share        share of the steps that have any self-rollout
    rollout_steps        steps of the sampler in it
    """

    forcing: str = "teacher"
    clean_history_prob: float = 0.5
    times: TimestepConfig = field(default_factory=TimestepConfig)
    first_turns: int = 2
    turns: int = 5
    turns_end: float = 0.3
    turn_weight: float = 1.0
    edit_region_weight: float = 0.0
    instruction_dropout: float = 0.05
    on_policy_prob: float = 0.0
    degrade: bool = True
    degradations: DegradationConfig = field(default_factory=DegradationConfig)
    rollout: str = "cached"
    rollout_start: float = 0.1
    rollout_end: float = 0.6
    rollout_prob: float = 0.8
    rollout_share: float = 0.5
    rollout_steps: int = 4

    def __post_init__(self):
        super().__post_init__()
        _one_of("causal.forcing", self.forcing, ("teacher", "diffusion", "bidirectional"))
        _one_of("causal.rollout", self.rollout, ("cached", "one_pass", "none"))
        for name in ("first_turns", "turns", "rollout_steps"):
            _at_least(1, f"causal.{name}", getattr(self, name))
        if self.on_policy_prob and (self.forcing != "teacher" or not self.times.sampler_timesteps):
            raise AnchorEditError(
                "causal.on_policy_prob must be 0 without causal.forcing=teacher and causal.times.sampler_timesteps, "
                f"got {self.on_policy_prob}",
                "List the sampler's times in causal.times.sampler_timesteps, the noisiest first, and set "
                "causal.forcing=teacher, or set it to 0",
            )
        if self.forcing == "bidirectional" and self.rollout != "none":
            raise AnchorEditError(
                f"causal.rollout must be 'none' with causal.forcing=bidirectional, got {self.rollout!r}",
                "Set causal.rollout=none: only a causal model has a K/V cache",
            )


@dataclass(frozen=True)
class ConsistencyConfig(StageConfig):
    """Configure stage 3a: consistency distillation on a grid of `grid` steps with `shift`.

    cfg                 guidance scale of the teacher
    edit_region_weight  as in `PretrainConfig`
    rollout_prob        probability that a frame of the history is the student's own output, made as at inference
    rollout_share       share of the steps that have any; 0: histories are true, as published
    """

    turns: int = 5
    edit_region_weight: float = 0.0
    grid: int = 48
    shift: float = 5.0
    cfg: float = 3.0
    rollout_prob: float = 0.8
    rollout_share: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("turns", "grid"):
            _at_least(1, f"distill.consistency.{name}", getattr(self, name))


@dataclass(frozen=True)
class DistributionMatchingConfig(StageConfig):
    """Configure stage 3b: distribution matching behind the model's own histories.

    cfg              guidance scale of the real score
    times            at which the scores are compared
    generator_every  the generator learns in every such step, the fake score in all of them
    critic           optimiser of the fake score
    """

    turns: int = 5
    cfg: float = 3.0
    times: TimestepConfig = field(default_factory=lambda: TimestepConfig(low=20, high=980))
    generator_every: int = 5
    critic: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=5e-6, betas=(0.0, 0.999)))

    def __post_init__(self):
        super().__post_init__()
        for name in ("turns", "generator_every"):
            _at_least(1, f"distill.matching.{name}", getattr(self, name))


@dataclass(frozen=True)
class DistillConfig:
    """Configure stage 3: first 3a, then 3b, both with the weights `teacher`; empty: those of the second stage."""

    teacher: str = ""
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    matching: DistributionMatchingConfig = field(default_factory=DistributionMatchingConfig)


@dataclass(frozen=True)
class ExportConfig:
    """Configure the exported model.

    transformer  file or folder; empty: that of the last stage
    average      transformers of the same sizes whose weights are averaged with it, as of runs with the same initial
                 weights (https://arxiv.org/abs/2203.05482)
    dtype        of the stored weights
    sampler      "renoise" or "euler"; empty: the one that the transformer was trained for
    """

    transformer: str = ""
    average: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    sampler: str = ""

    def __post_init__(self):
        _one_of("export.sampler", self.sampler, ("", "renoise", "euler"))
        _one_of("export.dtype", self.dtype, ("float32", "bfloat16"))


@dataclass(frozen=True)
class Config:
    """Configure a whole run: `model` has the transformer's sizes, `edit` says how the trained checkpoint edits.

    Checkpoints of stages 1 and 2 are sampled by Euler with `edit.num_steps`, `edit.shift` and `edit.cfg`;
    those of stage 3 by re-noising at `edit.timesteps`, without guidance.
    """

    model: TransformerConfig
    edit: EditConfig = field(default_factory=EditConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    causal: CausalConfig = field(default_factory=CausalConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def undistilled(self) -> EditConfig:
        """Return how the checkpoints of stages 1 and 2 are sampled."""
        return replace(self.edit, sampler="euler")

    def distilled(self) -> EditConfig:
        """Return how the checkpoints of stage 3 are sampled."""
        return replace(self.edit, sampler="renoise", cfg=1.0)


def named_config(name: str) -> Config:
    """Return one of `NAMES`; raise AnchorEditError for any other name."""
    if name not in _NAMED:
        raise AnchorEditError(
            f"the config must be one of {', '.join(NAMES)} or a YAML file, got {name!r}",
            "Choose one of them; a file ends in .yaml or .yml",
        )
    return _NAMED[name]()


def _tiny() -> Config:
    """Return the recipe for a CPU: Muon at a high rate, a small batch, extra weight on the edited region.

    Most times are those of the distilled sampler, above all pure noise, where the edit is decided; at later ones much
    of it can be seen in the image. Instructions are seldom dropped: nothing is guided here, and a null instruction
    means an unchanged image. There are two micro-batches for two cores.
    """
    muon = OptimiserConfig("muon", lr=1.5e-3, betas=(0.9, 0.99), clip=1.0, decay=0.15)
    times = TimestepConfig(sampler_timesteps=_FOUR_STEPS, sampler_weights=(0.55, 0.2, 0.15, 0.1), sampler_share=0.7)
    return Config(
        model=TransformerConfig.named("tiny"),
        edit=EditConfig(
            resolution=128, resolution_step=128, max_aspect_ratio=1.0, max_turns=6, num_steps=8, shift=3.0, cfg=1.0
        ),
        parts=PartsConfig(transformer="random"),
        pretrain=PretrainConfig(
            minutes=60,
            batch=14,
            micro_batches=2,
            optimiser=muon,
            times=times,
            instruction_dropout=0.01,
            edit_region_weight=2.0,
        ),
        causal=CausalConfig(
            minutes=120,
            batch=6,
            micro_batches=2,
            optimiser=replace(muon, lr=1.2e-3, decay=0.25),
            times=times,
            first_turns=5,  # each length is one more compilation, which takes minutes
            turn_weight=0.5,
            edit_region_weight=1.0,  # with more, objects are added where they do not belong
            instruction_dropout=0.005,
            degradations=DegradationConfig(p_round_trip=0.02, p_jpeg=0.02),  # the VAE is slow on a CPU
            rollout_steps=2,
        ),
        distill=DistillConfig(
            consistency=ConsistencyConfig(
                minutes=15,
                batch=10,
                optimiser=replace(muon, lr=2e-4, warm_up=0.02),
                cfg=1.0,
                edit_region_weight=1.0,
                rollout_share=0.75,
            ),
            matching=DistributionMatchingConfig(
                minutes=15,
                batch=8,
                cfg=1.0,
                optimiser=OptimiserConfig(lr=2e-5, betas=(0.0, 0.99), clip=1.0, decay=0.4),
                critic=OptimiserConfig(lr=5e-5, betas=(0.0, 0.99), clip=1.0),
            ),
        ),
    )


def _wan(size: str) -> Config:
    """Return the published schedule, with budgets in steps."""
    edit = EditConfig(num_steps=50, shift=8.0, cfg=5.0)
    times = TimestepConfig(shift=5.0)
    adamw = OptimiserConfig(lr=1e-5)
    matching = OptimiserConfig(lr=1e-6, betas=(0.0, 0.999))
    return Config(
        model=TransformerConfig.named(size),
        edit=edit,
        data=DataConfig(path="runs/shards"),
        engine=EngineConfig(parallel="fsdp", checkpointing=True, save_minutes=30),
        pretrain=PretrainConfig(steps=10_000, micro_batches=64, optimiser=adamw, times=times),
        causal=CausalConfig(steps=10_000, micro_batches=64, optimiser=adamw, times=times),
        distill=DistillConfig(
            consistency=ConsistencyConfig(steps=5_000, micro_batches=64, optimiser=OptimiserConfig(lr=5e-6)),
            matching=DistributionMatchingConfig(steps=2_000, micro_batches=64, optimiser=matching),
        ),
    )


def _wan_lora(size: str) -> Config:
    """Return the schedule for adapters, which learn at a higher rate and fit on one GPU."""
    config = _wan(size)
    adamw = OptimiserConfig(lr=1e-4, clip=1.0)
    matching = replace(config.distill.matching, micro_batches=8, optimiser=replace(adamw, lr=1e-5, betas=(0.0, 0.999)))
    return replace(
        config,
        lora=LoraConfig(rank=32),
        engine=replace(config.engine, parallel="ddp"),
        pretrain=replace(config.pretrain, micro_batches=8, optimiser=adamw),
        causal=replace(config.causal, micro_batches=8, optimiser=adamw),
        distill=DistillConfig(
            consistency=replace(config.distill.consistency, micro_batches=8, optimiser=replace(adamw, lr=5e-5)),
            matching=replace(matching, critic=replace(matching.critic, lr=5e-5)),
        ),
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise AnchorEditError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}", "Choose one of these"
        )


def _at_least(least: int, name: str, value: float) -> None:
    if not value >= least:
        raise AnchorEditError(f"{name} must be {least} or more, got {value}", f"Set it to {least} or more")


_NAMED = {
    "tiny": _tiny,
    "wan-1.3b": lambda: _wan("1.3B"),
    "wan-1.3b-lora": lambda: _wan_lora("1.3B"),
    "wan-14b": lambda: _wan("14B"),
}
NAMES = tuple(_NAMED)
