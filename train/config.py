"""Everything a training run can be told, as small frozen dataclasses, and the named configs.

    tiny            our own small model, from nothing, on whatever machine there is
    wan-1.3b        Wan 2.1 1.3B, all weights
    wan-1.3b-lora   the same through low-rank adapters, on one GPU
    wan-14b         Wan 2.1 14B, all weights, sharded over many GPUs

`train.settings` merges a YAML file and `--set key=value` into one of them. Learning rates, momenta and grids of the
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
    """Where the sessions come from.

    path     folder of shards (`python -m train data`), relative to where the command is run; empty: the studio,
             drawn as the settings below say
    cache    folder of encoded sessions, which several runs may share; empty: under --out
    limit    use only this many files of `path`; 0: all
    workers  processes that read images while they are encoded
    stars    sessions in which every edit, one of `star_turns`, starts from the source: for stage 1
    chains   sessions in which each of `chain_turns` edits starts from the image before: for stages 2 and 3
    shares   kinds of the studio's edits that come so many times as often as the others: [[resize, 5], ['null', 0.5]]
    shown    sessions of the studio that samples are drawn of, of which none is trained on; with a `path` samples are
             of its first sessions, which are
    compile  draw, and on a CPU encode, by compiled loops where there is much of it
    english  how often a session that is in several languages is read in English; the others share the rest
    seed     of the studio, of the order of all data and of the languages they are read in
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
    shown: int = 16
    compile: bool = True
    english: float = 0.8
    seed: int = 1


@dataclass(frozen=True)
class VaeConfig:
    """The small VAE, learned from `pool` images.

    `decoder_only` goes on with the decoder of a finished one, so that all latents stay valid.
    """

    minutes: float = 13.0
    pool: int = 16_384
    decoder_only: bool = False
    base_dim: int = 16
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class TextConfig:
    """The small text encoder; `floor` is the least accuracy on held-out texts, over all slots, that is accepted."""

    steps: int = 800
    pool: int = 20_000
    floor: float = 0.97
    seed: int = 0


@dataclass(frozen=True)
class PartsConfig:
    """Finished parts. A VAE and a text encoder that are not given are those that this run trains under --out.

    transformer  where the first stage starts: any file or folder that `anchoredit_model` reads, or "random"
    vae          folder with a diffusers AutoencoderKLWan
    text         folder with a umT5 encoder and its spiece.model
    """

    transformer: str = ""
    vae: str = ""
    text: str = ""


@dataclass(frozen=True)
class EngineConfig:
    """How training runs, the same for all stages.

    seed             of the random start, of new adapters and of every draw; the order of the data has data.seed
    precision        "bfloat16": matrices are multiplied in it, weights and optimisers stay float32; or "float32"
    parallel         what several processes do: "ddp" each holds everything, "fsdp" they share it out
    compile          block by block, one short compilation for all of them
    checkpointing    compute activations again in the backward pass instead of keeping them
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
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) in place of all weights; rank 0: none.

    The same ones go through all stages, so that the last LoRA file belongs to the weights that the first began with; a
    stage with an `init` of its own begins with new ones for that.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")

    def __post_init__(self):
        _at_least(0, "lora.rank", self.rank)


@dataclass(frozen=True)
class OptimiserConfig:
    """Configure an optimiser.

    `kind` "muon" takes the matrices of the blocks by Muon (https://kellerjordan.github.io/posts/muon/), the rest by
    AdamW; "adamw" takes all by AdamW.

    The learning rate rises over the first `warm_up` of the budget, stays, and falls to zero over the last `decay`.
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
    """What all stages of the curriculum have.

    init           weights to start from; empty: those of the stage before
    steps, minutes the budget, whichever is over first; 0: not limited by it. Schedules run over it.
    batch          sessions in one forward of one process
    micro_batches  such batches per step, shared out among the processes: their number divides it
    ema            decay of the average that is kept; the first steps are forgotten sooner
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
                f"batch {self.batch} times micro_batches {self.micro_batches} is no work", "Set both to 1 or more"
            )


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Stage 1: one edit of a source at a time.

    times           of the noisy edits
    identity        how often the instruction is null and the target the source itself
    dropout         how often the instruction alone is null, for guidance
    edit_region_weight   how much more than the whole image that which an edit changes counts, whatever its size
    """

    times: TimestepConfig = field(default_factory=TimestepConfig)
    identity: float = 0.1
    dropout: float = 0.05
    edit_region_weight: float = 0.0


@dataclass(frozen=True)
class CausalConfig(StageConfig):
    """Stage 2: whole sessions, each turn behind a history as it will meet it.

    forcing            "teacher": every noisy turn behind a history at t = 0, all in one forward; "diffusion": one
                       sequence of noisy frames, some of which stand behind a history at t = 0; "bidirectional": one
                       noisy turn behind a history that sees it, as in Wan's own model, only to compare
    clean_history_prob      in diffusion forcing, how often that is
    times              of the noisy turns
    first_turns, turns sessions grow from so many turns to so many, the last count being reached at `turns_end`
    turn_weight        alpha: turn number p of 0..1 weighs 1 + alpha * p
    edit_region_weight as in `PretrainConfig`
    dropout            how often an instruction is null, for guidance
    on_policy_prob     how often the noisy turns are not the noisy truth but what the sampler itself has made on its way
                       to one of `times.sampler_timesteps`, so that its later steps learn to correct what earlier ones
                       missed; only in teacher forcing, for a model that is sampled by re-noising at those times
    degrade            whether histories are damaged, by `degradations`
    rollout            the form of self-rollout: "cached", as inference does it, "one_pass" or "none"
    rollout_prob       probability that a frame of the history is the model's own, from `rollout_end` on; none
                       before `rollout_start`, both shares of the budget
    rollout_share      of the steps in which there is any
    rollout_steps      of the sampler
    """

    forcing: str = "teacher"
    clean_history_prob: float = 0.5
    times: TimestepConfig = field(default_factory=TimestepConfig)
    first_turns: int = 2
    turns: int = 5
    turns_end: float = 0.3
    turn_weight: float = 1.0
    edit_region_weight: float = 0.0
    dropout: float = 0.05
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
                f"causal.on_policy_prob is {self.on_policy_prob}",
                "List the sampler's times in causal.times.sampler_timesteps, the noisiest "
                "first, and set causal.forcing=teacher, or set it to 0",
            )
        if self.forcing == "bidirectional" and self.rollout != "none":
            raise AnchorEditError(
                f"causal.rollout {self.rollout!r} reads what a causal model remembers, and causal.forcing is "
                "'bidirectional'",
                "Set causal.rollout=none",
            )


@dataclass(frozen=True)
class ConsistencyConfig(StageConfig):
    """Stage 3a: consistency distillation along a grid of `grid` steps with `shift`, the teacher guided.

    edit_region_weight  as in `PretrainConfig`
    rollout        probability that a frame of the history is the student's own, made as inference does
    rollout_share  of the steps in which there is any; 0: histories are true, as published
    """

    turns: int = 5
    edit_region_weight: float = 0.0
    grid: int = 48
    shift: float = 5.0
    guidance: float = 3.0
    rollout: float = 0.8
    rollout_share: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("turns", "grid"):
            _at_least(1, f"distill.consistency.{name}", getattr(self, name))


@dataclass(frozen=True)
class DistributionMatchingConfig(StageConfig):
    """Stage 3b: distribution matching behind the model's own histories.

    guidance        of the real score
    times           at which the scores look
    every           the generator learns in every such step, the fake score in all of them
    critic          the fake score's optimiser
    """

    turns: int = 5
    guidance: float = 3.0
    times: TimestepConfig = field(default_factory=lambda: TimestepConfig(low=20, high=980))
    every: int = 5
    critic: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=5e-6, betas=(0.0, 0.999)))

    def __post_init__(self):
        super().__post_init__()
        for name in ("turns", "every"):
            _at_least(1, f"distill.matching.{name}", getattr(self, name))


@dataclass(frozen=True)
class DistillConfig:
    """Stage 3: first 3a, then 3b. Both are taught by `teacher`; empty: the second stage's weights."""

    teacher: str = ""
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    matching: DistributionMatchingConfig = field(default_factory=DistributionMatchingConfig)


@dataclass(frozen=True)
class ExportConfig:
    """The model that is put together, with its LoRA file if any.

    transformer  empty: the last stage's
    average      others of the same sizes: the model has the mean of all weights, as of runs from one start
                 (https://arxiv.org/abs/2203.05482)
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
    """A whole run. `model` are the transformer's sizes, `edit` is how the trained checkpoint edits.

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
        """How the checkpoints of stages 1 and 2 are sampled."""
        return replace(self.edit, sampler="euler")

    def distilled(self) -> EditConfig:
        """How the checkpoints of stage 3 are sampled."""
        return replace(self.edit, sampler="renoise", cfg=1.0)


def named_config(name: str) -> Config:
    """One of `NAMES`."""
    if name not in _NAMED:
        raise AnchorEditError(f"there is no config {name!r}", f"Choose one of {', '.join(NAMES)} or give a YAML file")
    return _NAMED[name]()


def _tiny() -> Config:
    """Muon at a high rate, a small batch, weight on what an edit changes: the recipe that a CPU needs.

    Most times are those that the distilled sampler will ask for, above all pure noise: there the edit is decided, while
    later ones can read much of it off the image. Instructions are seldom dropped, as nothing is guided here and a
    null instruction should keep to what it means. Two micro-batches are one for each of two cores.
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
            minutes=60, batch=14, micro_batches=2, optimiser=muon, times=times, dropout=0.01, edit_region_weight=2.0
        ),
        causal=CausalConfig(
            minutes=120,
            batch=6,
            micro_batches=2,
            optimiser=replace(muon, lr=1.2e-3, decay=0.25),
            times=times,
            first_turns=5,  # every length is compiled anew, for minutes
            turn_weight=0.5,
            edit_region_weight=1.0,  # more draws what is added where it does not belong
            dropout=0.005,
            degradations=DegradationConfig(p_round_trip=0.02, p_jpeg=0.02),  # the VAE is slow on a CPU
            rollout_steps=2,
        ),
        distill=DistillConfig(
            consistency=ConsistencyConfig(
                minutes=15,
                batch=10,
                optimiser=replace(muon, lr=2e-4, warm_up=0.02),
                guidance=1.0,
                edit_region_weight=1.0,
                rollout_share=0.75,
            ),
            matching=DistributionMatchingConfig(
                minutes=15,
                batch=8,
                guidance=1.0,
                optimiser=OptimiserConfig(lr=2e-5, betas=(0.0, 0.99), clip=1.0, decay=0.4),
                critic=OptimiserConfig(lr=5e-5, betas=(0.0, 0.99), clip=1.0),
            ),
        ),
    )


def _wan(size: str) -> Config:
    """Return the published schedule. Many small budgets make no sense at this size, so these are in steps."""
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
    """Adapters learn at a higher rate and fit one GPU."""
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
        raise AnchorEditError(f"{name} {value!r} is unknown", f"Choose one of {', '.join(allowed)}")


def _at_least(least: int, name: str, value: float) -> None:
    if not value >= least:
        raise AnchorEditError(f"{name} is {value}", f"Set it to {least} or more")


_NAMED = {
    "tiny": _tiny,
    "wan-1.3b": lambda: _wan("1.3B"),
    "wan-1.3b-lora": lambda: _wan_lora("1.3B"),
    "wan-14b": lambda: _wan("14B"),
}
NAMES = tuple(_NAMED)
