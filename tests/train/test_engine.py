"""The engine: several processes, exact resume, the stages in order, LoRA, the dry run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("webdataset")
pytest.importorskip("tensorboard")

from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anchoredit_model.checkpoint.loading import load_transformer, read_checkpoint
from anchoredit_model.checkpoint.saving import save_checkpoint
from anchoredit_model.errors import AnchorEditError
from train.__main__ import main
from train.ablations import ABLATIONS
from train.config_io import load_config
from train.curriculum import Curriculum
from train.dry_run import estimate, largest_forward
from train.engine import Engine
from train.log import Log
from train.stages.pretrain import PretrainStage

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("engine_worker.py")


@pytest.fixture(scope="session")
def config(small_model, tmp_path_factory) -> str:
    """A YAML file: the smallest curriculum, on sessions of the studio that are encoded once for all tests."""
    folder = tmp_path_factory.mktemp("engine")
    path = folder / "small.yaml"
    path.write_text(
        f"""
base: tiny
model: {{dim: 32, ffn_dim: 32, num_heads: 2, num_layers: 2, freq_dim: 16, text_dim: 32}}
edit: {{resolution: 64, resolution_step: 64, num_steps: 2}}
parts: {{vae: {small_model / "vae"}, text: {small_model / "text_encoder"}}}
data: {{cache: {folder / "cache"}, stars: 12, star_turns: 2, chains: 12, chain_turns: 3, preview: 2}}
engine: {{compile: false, precision: float32, log_steps: 1, sample_steps: 0}}
pretrain: {{steps: 20, minutes: 0, batch: 2, micro_batches: 2}}
causal: {{steps: 20, minutes: 0, batch: 2, micro_batches: 2, on_policy_prob: 0.5, rollout_start: 0.0, rollout_steps: 1}}
distill:
  consistency: {{steps: 3, minutes: 0, batch: 2, micro_batches: 2}}
  matching: {{steps: 6, minutes: 0, batch: 2, micro_batches: 2}}
""",
        encoding="utf-8",
    )
    return str(path)


def train(config: str, out: Path, stage: str, *changes: str, resume: bool = False) -> bool:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the worker: the same order of summation
    try:
        return Curriculum(load_config(config, changes), out).run(stage, resume)
    finally:
        torch.set_num_threads(threads)


def worker(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, *launch, str(WORKER), *map(str, arguments)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)


def losses(folder: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return torch.tensor([value for row in rows for name, value in row.items() if name.startswith("loss")])


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(config, tmp_path, capsys):
    """With DDP, and with FSDP2 and all weights as DTensors: the same 20 losses on the same global batch."""
    assert train(config, tmp_path / "one", "causal", "causal.init=" + start(config, tmp_path))
    out = capsys.readouterr().out
    assert "causal: 12 sessions" in out and "causal: 3 batches of 4 sessions per epoch" in out
    settings = tmp_path / "two.yaml"
    settings.write_text(Path(config).read_text(encoding="utf-8"), encoding="utf-8")
    text = settings.read_text(encoding="utf-8").replace("causal: {", f"causal: {{init: {tmp_path / 'start'}, ")
    settings.write_text(text.replace(str(tmp_path / "start"), start(config, tmp_path)), encoding="utf-8")
    done = worker(settings, tmp_path / "two", "causal", "--parallel", "ddp", "fsdp", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one = losses(tmp_path / "one" / "causal")
    assert len(one) == 20
    for kind in ("ddp", "fsdp"):
        torch.testing.assert_close(losses(tmp_path / "two" / kind / "causal"), one, atol=0, rtol=1e-4)
    ours, _ = load_transformer(tmp_path / "one" / "causal" / "transformer.safetensors")
    theirs, _ = load_transformer(tmp_path / "two" / "fsdp" / "causal" / "transformer.safetensors")
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def start(config: str, folder: Path) -> str:
    """The checkpoint of a first stage of two steps."""
    path = folder / "first" / "pretrain" / "transformer.safetensors"
    if not path.exists():
        assert train(config, folder / "first", "pretrain", "pretrain.steps=2")
    return str(path)


def sizes_of(checkpoint: Path) -> tuple:
    read = read_checkpoint(checkpoint)
    return read.transformer_config, read.edit_config


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path):
    """SIGKILL at step 30 of 60, with the last state at step 20: the same bits at the end."""
    changed = Path(config).read_text(encoding="utf-8").replace("steps: 20", "steps: 60", 1)
    settings = tmp_path / "sixty.yaml"
    settings.write_text(changed.replace("engine: {", "engine: {save_steps: 20, "), encoding="utf-8")
    assert train(str(settings), tmp_path / "whole", "pretrain")
    done = worker(settings, tmp_path / "killed", "pretrain", "--die-at", 30)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    folder = tmp_path / "killed" / "pretrain"
    assert [path.name for path in (folder / "state").iterdir()] == ["step-00000020"]
    with pytest.raises(AnchorEditError, match="--resume"):
        train(str(settings), tmp_path / "killed", "pretrain")
    assert train(str(settings), tmp_path / "killed", "pretrain", resume=True)
    weights = [load_file(path / "transformer.safetensors") for path in (folder, tmp_path / "whole" / "pretrain")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    states = [path / "state/step-00000060/__0_0.distcp" for path in (folder, tmp_path / "whole" / "pretrain")]
    assert states[0].read_bytes() == states[1].read_bytes()  # trained weights, EMA and optimisers
    assert torch.equal(losses(folder), losses(tmp_path / "whole" / "pretrain"))
    written = states[0].stat().st_mtime_ns
    for case in ("missing", "stale", "complete"):
        checkpoint = folder / "transformer.safetensors"
        if case == "missing":
            checkpoint.unlink()
        elif case == "stale":  # as after a full disk: the state of step 60 beside the weights of step 40
            older, model, edit = load_file(checkpoint), *sizes_of(checkpoint)
            save_checkpoint(checkpoint, {name: tensor + 1 for name, tensor in older.items()}, model, edit, step="40")
        made = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        assert train(str(settings), tmp_path / "killed", "pretrain", resume=True)  # only the missing file is written
        assert states[0].stat().st_mtime_ns == written
        assert (checkpoint.stat().st_mtime_ns == made) == (case == "complete")
        last = load_file(checkpoint)
        assert all(torch.equal(tensor, last[name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_ctrl_c_saves_and_a_full_disk_keeps_the_last_state(config, tmp_path, monkeypatch, largest_file, capsys):
    train_step = Engine.train_step

    def interrupted(self):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self)

    save = Engine.save

    def save_interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        save(self)

    monkeypatch.setattr(Engine, "train_step", interrupted)
    monkeypatch.setattr(Engine, "save", save_interrupted)  # a second Ctrl-C waits for the first to save
    handler = signal.getsignal(signal.SIGINT)
    assert not train(config, tmp_path, "pretrain")
    assert signal.getsignal(signal.SIGINT) is handler and "--resume" in capsys.readouterr().out
    folder = tmp_path / "pretrain"
    assert [path.name for path in (folder / "state").iterdir()] == ["step-00000004"]
    before = (folder / "transformer.safetensors").read_bytes()
    monkeypatch.setattr(Engine, "train_step", train_step)
    monkeypatch.setattr(Engine, "save", save)
    for change, named in {
        "pretrain.micro_batches=4": "global batch",
        "edit.max_aspect_ratio=2": "latents",
        "data.english_prob=0.5": "share of English",
        "data.seed=2": "data",
        "engine.seed=2": "random seed",
    }.items():
        with pytest.raises(AnchorEditError, match=f"the {named} must be that of the state in .* give another --out"):
            train(config, tmp_path, "pretrain", change, resume=True)
    with largest_file(20_000), pytest.raises(AnchorEditError, match="cannot be written"):
        train(config, tmp_path, "pretrain", resume=True)
    assert [path.name for path in (folder / "state").iterdir()] == ["step-00000004"]
    assert (folder / "transformer.safetensors").read_bytes() == before


@pytest.mark.slow
def test_ctrl_c_in_one_of_two_processes_stops_both_after_the_same_step(config, tmp_path):
    done = worker(config, tmp_path, "pretrain", "--interrupt", 3, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "pretrain" / "state").iterdir()] == ["step-00000004"]


def test_a_gradient_that_is_not_finite_changes_nothing(config, tmp_path, monkeypatch):
    """A finite loss can have one; the weights and the last state stay unchanged."""
    assert train(config, tmp_path, "pretrain", "pretrain.steps=2")
    loss, weights = PretrainStage.loss, {}

    def infinite_gradient(self, *args):
        weights["now"] = self.main.module.state_dict()
        weights["before"] = {name: tensor.clone() for name, tensor in weights["now"].items()}
        value = loss(self, *args)
        value.register_hook(lambda gradient: gradient * torch.inf)
        return value * 1.0

    monkeypatch.setattr(PretrainStage, "loss", infinite_gradient)
    with pytest.raises(AnchorEditError, match="gradient norm must be finite, got .* in step 3. Lower the learning"):
        train(config, tmp_path, "pretrain", resume=True)
    assert all(torch.equal(tensor, weights["before"][name]) for name, tensor in weights["now"].items())
    assert [path.name for path in (tmp_path / "pretrain" / "state").iterdir()] == ["step-00000002"]


def test_a_log_that_cannot_be_written_is_one_clear_error(tmp_path, largest_file):
    log = Log(tmp_path / "stage", 0, "stage", 0.0)
    log.add({"loss": 1.0}, 0.1)
    log.line(1, {})
    with largest_file((tmp_path / "stage" / "log.jsonl").stat().st_size):
        with pytest.raises(AnchorEditError, match="log .*log.jsonl' cannot be written .*Free disk space"):
            log.line(2, {"minutes": 1.0})
    log.line(3, {})
    log.images("samples", torch.rand(3, 8, 12), 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "stage")).Reload()
    assert [event.step for event in events.Scalars("minutes")] == [2]  # written as soon as there is room
    image = events.Images("samples")[0]
    assert (image.step, image.height, image.width) == (3, 8, 12)
    (tmp_path / "file").touch()
    with pytest.raises(AnchorEditError, match="log .* cannot be written .*another --out"):
        Log(tmp_path / "file", 0, "stage", 0.0)


@pytest.mark.slow
def test_the_whole_curriculum_and_its_export(config, tmp_path, monkeypatch):
    """`all` trains every stage in bfloat16, each from the one before, and exports files for nodes and ComfyUI."""
    monkeypatch.chdir(tmp_path)
    changes = ["engine.precision=bfloat16", "pretrain.steps=4", "causal.steps=4", "engine.sample_steps=4"]
    options = [word for change in changes for word in ("--set", change)]
    assert main(["all", "--config", config, *options, "--out", "run"]) == 0
    run = tmp_path / "run"
    samplers = {}
    for stage in ("pretrain", "causal", "distill/consistency", "distill/matching"):
        assert losses(run / stage).isfinite().all()
        samplers[stage] = load_transformer(run / stage / "transformer.safetensors")[1].sampler
    assert list(samplers.values()) == ["euler", "euler", "renoise", "renoise"]
    with safe_open(run / "anchoredit.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert json.loads(metadata["config"])["transformer"]["dim"] == 32 and "blocks.0.self_attn.q.weight" in names
    exported, edit = load_transformer(run / "anchoredit.safetensors")
    last, _ = load_transformer(run / "distill" / "matching" / "transformer.safetensors")
    assert edit.sampler == "renoise" and edit.cfg == 1
    for name, tensor in last.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor.bfloat16().float()), name
    assert (run / "model" / "model_index.json").is_file()


@pytest.mark.slow
def test_ablations_share_budget_and_initial_weights(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--config", config, "--out", "run"]
    for change in ("pretrain.steps=2", "causal.steps=9", "distill.consistency.steps=3", "distill.matching.steps=2"):
        options += ["--set", change]
    assert main(["ablations", *options]) == 0
    run, steps = tmp_path / "run", {}
    for name in ABLATIONS:
        assert (run / name / "model" / "model_index.json").is_file()
        logs = (run / name).glob("causal/log.jsonl"), (run / name).glob("distill/*/log.jsonl")
        logs = [*chain(*logs), *((run / name).glob("pretrain/log.jsonl") if name == "stage 1" else ())]
        steps[name] = sum(len(log.read_text(encoding="utf-8").splitlines()) for log in logs)
    assert set(steps.values()) == {9}
    own = [name for name in ABLATIONS if (run / name / "pretrain").is_dir()]
    assert own == ["stage 1", "without identity mapping"] and len(losses(run / "shared" / "pretrain")) == 2
    made = [path.read_bytes() for path in sorted(run.glob("*/anchoredit.safetensors"))]
    assert len(made) == len(set(made)) == len(ABLATIONS)
    assert main(["ablations", *options, "--only", "stage 4"]) == 2
    assert "the ablation must be one of 'stage 1', " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_does_not_change_the_losses(config, tmp_path, precision):
    both = []
    for checkpointing in ("false", "true"):
        changes = [f"engine.precision={precision}", f"engine.checkpointing={checkpointing}", "pretrain.steps=2"]
        assert train(config, tmp_path / checkpointing, "pretrain", *changes)
        both.append(losses(tmp_path / checkpointing / "pretrain"))
    assert torch.equal(*both)


def test_only_adapters_are_trained_and_both_files_agree(config, tmp_path):
    """The merged checkpoint equals the base with the LoRA file, merged as its readers do."""
    base, _ = load_transformer(start(config, tmp_path))
    lora = ["lora.rank=4", "lora.alpha=8", "pretrain.optimiser.kind=adamw", "pretrain.steps=6"]
    assert train(config, tmp_path / "lora", "pretrain", *lora, "pretrain.init=" + start(config, tmp_path))
    merged, _ = load_transformer(tmp_path / "lora" / "pretrain" / "transformer.safetensors")
    adapters = load_file(tmp_path / "lora" / "pretrain" / "lora.safetensors")
    layers = {name.rpartition(".lora_A")[0] for name in adapters if ".lora_A" in name}
    assert len(layers) == 2 * (2 * 4 + 2)
    adapted = {f"{name.removeprefix('diffusion_model.')}.weight": name for name in layers}
    for name, tensor in base.state_dict().items():
        expected = tensor
        if name in adapted:
            up, down = (adapters[f"{adapted[name]}.lora_{part}.weight"] for part in "BA")
            assert up.abs().max() > 0
            expected = tensor + adapters[f"{adapted[name]}.alpha"] / 4 * up @ down
        torch.testing.assert_close(merged.state_dict()[name], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_all_stages_train_the_same_adapters_on_one_base(config, tmp_path, capsys):
    """The initial weights of the first stage with the exported LoRA file are the exported model."""
    base = start(config, tmp_path)
    lora = ["lora.rank=4", "lora.alpha=8", "pretrain.init=" + base, "pretrain.steps=3", "causal.steps=3"]
    lora += ["pretrain.optimiser.kind=adamw", "causal.optimiser.kind=adamw", "export.dtype=float32"]
    lora += ["distill.consistency.optimiser.kind=adamw", "distill.matching.steps=0"]
    out, models = tmp_path / "lora", [load_transformer(base)[0].state_dict()]
    for stage, folder in (("pretrain", "pretrain"), ("causal", "causal"), ("distill", "distill/consistency")):
        assert train(config, out, stage, *lora)
        models.append(load_transformer(out / folder / "transformer.safetensors")[0].state_dict())
        with safe_open(out / folder / "lora.safetensors", framework="pt") as file:
            assert file.metadata()["base"] == base
        adapters = load_file(out / folder / "lora.safetensors")
        for name, tensor in models[-1].items():
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            expected = models[0][name]
            if f"{layer}.alpha" in adapters:
                up, down = (adapters[f"{layer}.lora_{part}.weight"] for part in "BA")
                expected = expected + adapters[f"{layer}.alpha"] / 4 * up @ down
                assert not torch.equal(tensor, models[-2][name]), "nothing learned"
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
    main(["export", "--config", config, *(word for change in lora for word in ("--set", change)), "--out", str(out)])
    assert load_file(out / "lora.safetensors").keys() == adapters.keys()
    other = Curriculum(load_config(config, [*lora, "lora.rank=8"]), out)
    with pytest.raises(AnchorEditError, match="adapters of lora.rank 8, .* its merged weights as this stage's init"):
        other.init("causal", 32)
    other = Curriculum(load_config(config, [*lora, f"pretrain.init={out / 'causal' / 'transformer.safetensors'}"]), out)
    with pytest.raises(
        AnchorEditError, match="the base of LoRA .* must be .*, got '.*first/pretrain/transformer.safetensors'"
    ):
        other.init("causal", 32)


@pytest.mark.slow
def test_a_dry_run_describes_the_run_and_writes_nothing(config, tmp_path, capsys):
    assert main(["all", "--config", config, "--out", str(tmp_path / "none"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in ("weights", "20 steps", "memory per process", "activations", "12 chains of 3 edits", "starts from its"):
        assert part in out, part
    assert "missing" not in out and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_dry_run_lists_all_missing_inputs(config, small_model, tmp_path, capsys):
    """The errors of the run, all at once; the output of an earlier step of the command is not missing."""

    def missing(command: str, *changes: str) -> list[str]:
        options = [word for change in changes for word in ("--set", change)]
        code = main([command, "--config", config, *options, "--out", str(tmp_path / "none"), "--dry-run"])
        found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing: ")]
        assert code == (2 if found else 0)
        return found

    def names(lines: list[str], *words: str) -> bool:
        return len(lines) == len(words) and all(word in line for line, word in zip(lines, words))

    bare = ["parts.vae=", "parts.text="]
    assert names(
        missing("causal", *bare),
        "of the VAE does not exist",
        "of the text encoder does not exist",
        "Train pretrain first",
    )
    assert missing("all", *bare) == []
    assert names(missing("all", "data.path=nowhere"), "no training data in 'nowhere'")
    assert names(missing("all", "parts.transformer=nowhere"), "nowhere")
    assert names(
        missing("distill"), "Train causal first, or --set distill.consistency.init", "--set distill.teacher=FILE"
    )
    assert names(missing("export", *bare), "the VAE", "the text encoder", "no trained transformer")
    wan = ["model.dim=128", "model.ffn_dim=128", "model.num_heads=1", f"parts.transformer={small_model}"]
    assert missing("pretrain", *wan) == missing("ablations", *wan) == []
    assert names(missing("pretrain", *wan, "model.num_layers=3"), "num_layers of")


def test_memory_of_pairs_from_shards_grows_with_the_turns(config):
    studio = load_config(config)
    shards = load_config(config, ["data.path=shards", "causal.turns=4"])
    assert largest_forward("pretrain", studio) == (2, 3) and largest_forward("pretrain", shards) == (2 * 4, 2)
    doubled = load_config(config, ["data.path=shards", "causal.turns=8"])
    assert estimate("pretrain", doubled, 1).activations > 1.9 * estimate("pretrain", shards, 1).activations


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["pretrain.steps=0"], "has no budget"),
        (["data.path=nowhere"], "no training data"),
        (["parts.transformer="], "has no initial weights"),
        (["parts.vae=nowhere"], "does not exist"),
        (["pretrain.init=nowhere"], "nowhere"),
    ],
)
def test_missing_inputs_are_one_clear_error(config, tmp_path, capsys, change, text):
    options = [word for setting in change for word in ("--set", setting)]
    assert main(["pretrain", "--config", config, *options, "--out", str(tmp_path / "out")]) == 2
    assert text in (error := capsys.readouterr().err) and error.strip().splitlines()[-1].startswith("error: ")
