"""Training of the VAE: it learns, goes on from its state as if never stopped, and can leave the encoder alone."""

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
from train.__main__ import main
from train.__main__ import run as run_command
from train.config import VaeConfig
from train.config_io import load_config
from train.tiny.parts import is_finished, mark_finished
from train.tiny.vae import Trainer, autoencoder_loss, build_model, run

BASE_DIM = 8


def trainer(out: Path, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(VaeConfig(**{"base_dim": BASE_DIM, **options}), out)


def train(it: Trainer, steps: int) -> list[float]:
    """Steps as `Trainer.train` makes them, without its clock."""
    images = sample_images(2, 32, 32, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss, _ = autoencoder_loss(it.model, images)
        loss.backward()
        it.update()
        it.average.update_parameters(it.model)
        it.step += 1
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_going_on_equals_never_having_stopped(tmp_path):
    whole = trainer(tmp_path / "vae")
    losses = train(whole, 2)
    whole.save_state()
    losses += train(whole, 2)
    rest = trainer(tmp_path / "vae")
    rest.load_state()
    assert rest.step == 2 and train(rest, 2) == losses[2:]
    assert losses[3] < losses[0]
    for one, other in ((whole.model, rest.model), (whole.average, rest.average)):
        for (name, weight), again in zip(one.state_dict().items(), other.state_dict().values()):
            assert torch.equal(weight, again), name


def test_what_cannot_be_resumed_is_named(tmp_path):
    with pytest.raises(AnchorEditError, match="Start without --resume"):
        trainer(tmp_path / "vae").load_state()
    trainer(tmp_path / "vae").save_state()
    with pytest.raises(AnchorEditError, match="Give --set vae.base_dim=8"):
        trainer(tmp_path / "vae", base_dim=16).load_state()


@pytest.mark.slow
def test_decoder_only_leaves_the_encoder_untouched(tmp_path):
    torch.manual_seed(1)
    ImageVAE(build_model(BASE_DIM)).save_pretrained(tmp_path / "vae")
    it = trainer(tmp_path / "vae", decoder_only=True)
    before = {name: weight.clone() for name, weight in it.model.state_dict().items()}
    train(it, 2)
    changed = {name.split(".")[0] for name, weight in it.model.state_dict().items() if not weight.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert it.state_file != trainer(tmp_path / "vae").state_file


class SmallPool:
    """A few drawings of the studio; `then` is called before each draw."""

    then = staticmethod(lambda: None)

    def __init__(self, count: int, generator: torch.Generator):
        self.images = (sample_images(4, 32, 32, generator) * 255).byte()

    def draw(self, count: int, side: int) -> torch.Tensor:
        SmallPool.then()
        return self.images[:2].float() / 255

    def sample(self, count: int) -> torch.Tensor:
        return self.images


@pytest.fixture
def quick(monkeypatch):
    """Training of a VAE that takes a second, and saves at every step."""
    for name, value in {"ImagePool": SmallPool, "IMAGE_SIZE": 32, "HELD_OUT": 2, "SAVE_SECONDS": 0}.items():
        monkeypatch.setattr(f"train.tiny.vae.{name}", value)


@pytest.mark.slow
def test_only_the_end_of_training_makes_a_vae_that_is_used(quick, tmp_path, monkeypatch, capsys):
    """Ctrl-C saves; what has begun or is finished is neither used half nor lost."""
    out, options = tmp_path / "vae", VaeConfig(minutes=0.02, base_dim=BASE_DIM)
    folder = curriculum.Curriculum(load_config("tiny"), tmp_path).vae_folder
    draws = iter(range(9))
    monkeypatch.setattr(SmallPool, "then", lambda: next(draws) == 1 and os.kill(os.getpid(), signal.SIGINT))
    assert not run(VaeConfig(minutes=1, base_dim=BASE_DIM), out)
    assert "stopped and saved at step 2: go on with --resume" in capsys.readouterr().out
    assert (out / "config.json").is_file() and not is_finished(out)
    with pytest.raises(AnchorEditError, match="is not finished. Go on with python -m train vae --resume, or use it as"):
        folder()
    assert curriculum.Curriculum(load_config("tiny", [f"parts.vae={out}"]), tmp_path).vae_folder() == out
    with pytest.raises(AnchorEditError, match="is the state of a training. Go on with --resume"):
        run(options, out)
    monkeypatch.setattr(SmallPool, "then", lambda: None)
    assert run(options, out, resume=True) and is_finished(out) and folder() == out
    made = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(options, out, resume=True)
    with pytest.raises(AnchorEditError, match="Go on with --resume"):
        run(options, out)
    trainer(out).state_file.unlink()
    for resume in (False, True):
        with pytest.raises(AnchorEditError, match=f"no state to go on from. .* --set parts.vae={out}"):
            run(options, out, resume)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == made


def test_all_leaves_a_finished_vae_alone_and_no_other(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr("train.tiny.vae.run", lambda options, out, resume: trained.append(resume))
    config = load_config("tiny")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    assert not run_command("vae", config, tmp_path, resume=True, skip_given=True) and trained == [True]
    mark_finished(tmp_path / "vae")
    assert run_command("vae", config, tmp_path, resume=True, skip_given=True) and trained == [True]
    assert main(["all", "--out", str(tmp_path)]) == 130 and trained == [True, False]


def test_of_several_processes_one_makes_the_vae_and_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("train.tiny.vae.run", lambda *_: pytest.fail("a second process trains"))
    monkeypatch.setattr(curriculum, "make_accelerator", lambda: SimpleNamespace(is_main_process=False))
    out = tmp_path / "vae"

    def main_process():
        time.sleep(0.2)
        out.mkdir()
        mark_finished(out)

    thread = threading.Thread(target=main_process)
    thread.start()
    assert run_command("vae", load_config("tiny"), tmp_path) and is_finished(out)
    thread.join()
