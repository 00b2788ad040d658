"""Training of the VAE: exact resume, decoder only, finished and unfinished folders."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.vae import ImageVAE
from studio.sessions import sample_images
from train import curriculum
from train.__main__ import main, run_all, vae
from train.config import VaeConfig
from train.config_io import load_config
from train.tiny.parts import is_finished, mark_finished
from train.tiny.vae import Trainer, autoencoder_loss, build_model, run

BASE_DIM = 8


def trainer(out: Path, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(VaeConfig(**{"base_dim": BASE_DIM, **options}), out)


def train(it: Trainer, steps: int) -> list[float]:
    """Run the steps of `Trainer.train` without its clock."""
    images = sample_images(2, 32, 32, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss, _ = autoencoder_loss(it.model, images)
        loss.backward()
        it.update()
        it.ema.update_parameters(it.model)
        it.step += 1
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "vae")
    losses = train(whole, 2)
    whole.save_state()
    losses += train(whole, 2)
    rest = trainer(tmp_path / "vae")
    rest.load_state()
    assert rest.step == 2 and train(rest, 2) == losses[2:]
    assert losses[3] < losses[0]
    for one, other in ((whole.model, rest.model), (whole.ema, rest.ema)):
        for (name, weight), again in zip(one.state_dict().items(), other.state_dict().values()):
            assert torch.equal(weight, again), name


def test_errors_of_resuming_name_the_remedy(tmp_path):
    with pytest.raises(AnchorEditError, match="Start without --resume"):
        trainer(tmp_path / "vae").load_state()
    trainer(tmp_path / "vae").save_state()
    with pytest.raises(AnchorEditError, match="Give --set vae.base_dim=8"):
        trainer(tmp_path / "vae", base_dim=16).load_state()


@pytest.mark.slow
def test_decoder_only_does_not_change_the_encoder(tmp_path):
    torch.manual_seed(1)
    ImageVAE(build_model(BASE_DIM)).save_pretrained(tmp_path / "vae")
    it = trainer(tmp_path / "vae", decoder_only=True)
    before = {name: weight.clone() for name, weight in it.model.state_dict().items()}
    train(it, 2)
    changed = {name.split(".")[0] for name, weight in it.model.state_dict().items() if not weight.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert it.state_file != trainer(tmp_path / "vae").state_file


class SmallPool:
    """A few images of the studio; `before` is called before each batch."""

    before = staticmethod(lambda: None)

    def __init__(self, count: int, generator: torch.Generator):
        self.images = (sample_images(4, 32, 32, generator) * 255).byte()

    def crops(self, count: int, side: int) -> torch.Tensor:
        SmallPool.before()
        return self.images[:2].float() / 255

    def spread(self, count: int) -> torch.Tensor:
        return self.images


@pytest.fixture
def quick(monkeypatch):
    """Training of a VAE that takes a second, and saves at every step."""
    for name, value in {"ImagePool": SmallPool, "IMAGE_SIZE": 32, "HELD_OUT": 2, "SAVE_SECONDS": 0}.items():
        monkeypatch.setattr(f"train.tiny.vae.{name}", value)


@pytest.mark.slow
def test_only_a_finished_vae_is_used(quick, tmp_path, monkeypatch, capsys):
    """Ctrl-C saves; an unfinished VAE is not used, and neither it nor a finished one is overwritten."""
    out, options = tmp_path / "vae", VaeConfig(minutes=0.02, base_dim=BASE_DIM)
    folder = curriculum.Curriculum(load_config("tiny"), tmp_path).vae_folder
    batches = iter(range(9))
    monkeypatch.setattr(SmallPool, "before", lambda: next(batches) == 1 and os.kill(os.getpid(), signal.SIGINT))
    assert not run(VaeConfig(minutes=1, base_dim=BASE_DIM), out)
    assert "stopped and saved at step 2, continue with --resume" in capsys.readouterr().out
    assert (out / "config.json").is_file() and not is_finished(out)
    with pytest.raises(AnchorEditError, match="is not finished. Continue with python -m train vae --resume, or use it"):
        folder()
    assert curriculum.Curriculum(load_config("tiny", [f"parts.vae={out}"]), tmp_path).vae_folder() == out
    with pytest.raises(AnchorEditError, match="has a training state. Continue with --resume"):
        run(options, out)
    monkeypatch.setattr(SmallPool, "before", lambda: None)
    assert run(options, out, resume=True) and is_finished(out) and folder() == out
    made = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(options, out, resume=True)
    with pytest.raises(AnchorEditError, match="Continue with --resume"):
        run(options, out)
    trainer(out).state_file.unlink()
    for resume in (False, True):
        with pytest.raises(AnchorEditError, match=f"has a VAE without a training state. .* --set parts.vae={out}"):
            run(options, out, resume)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == made


def test_all_skips_only_a_finished_vae(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr("train.tiny.vae.run", lambda options, out, resume: trained.append(resume))
    monkeypatch.setattr("train.tiny.text.run", lambda *_: trained.append("text"))
    run = curriculum.Curriculum(load_config("tiny"), tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    assert not run_all(run, resume=True) and trained == [True]
    mark_finished(tmp_path / "vae")
    assert not run_all(run, resume=True) and trained == [True, "text"]
    assert main(["all", "--out", str(tmp_path)]) == 130 and trained == [True, "text", False]


def test_one_process_trains_the_vae_and_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("train.tiny.vae.run", lambda *_: pytest.fail("a second process trains"))
    monkeypatch.setattr(curriculum, "make_accelerator", lambda: SimpleNamespace(is_main_process=False))
    out = tmp_path / "vae"

    def main_process():
        time.sleep(0.2)
        out.mkdir()
        mark_finished(out)

    thread = threading.Thread(target=main_process)
    thread.start()
    assert vae(curriculum.Curriculum(load_config("tiny"), tmp_path)) and is_finished(out)
    thread.join()
