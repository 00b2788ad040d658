"""Training of the VAE: it learns, goes on from its state as if never stopped, and can leave the encoder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.vae import ImageVAE
from train.config import Vae
from train.studio import sample_images
from train.vae import Trainer, autoencoder_loss, build_model

BASE_DIM = 8


def trainer(out: Path, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Vae(**{"base_dim": BASE_DIM, **options}), out)


def train(it: Trainer, steps: int) -> list[float]:
    """Steps as `Trainer.train` makes them, without its clock."""
    pictures = sample_images(2, 32, 32, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss, _ = autoencoder_loss(it.model, pictures)
        loss.backward()
        it.update()
        it.average.update_parameters(it.model)
        it.step += 1
        losses.append(loss.item())
    return losses


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
    with pytest.raises(AnchorEditError, match="start without --resume"):
        trainer(tmp_path / "vae").load_state()
    trainer(tmp_path / "vae").save_state()
    with pytest.raises(AnchorEditError, match="give --set vae.base_dim=8"):
        trainer(tmp_path / "vae", base_dim=16).load_state()


def test_decoder_only_leaves_the_encoder_untouched(tmp_path):
    torch.manual_seed(1)
    ImageVAE(build_model(BASE_DIM)).save_pretrained(tmp_path / "vae")
    it = trainer(tmp_path / "vae", decoder_only=True)
    before = {name: weight.clone() for name, weight in it.model.state_dict().items()}
    train(it, 2)
    changed = {name.split(".")[0] for name, weight in it.model.state_dict().items() if not weight.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert it.state_file != trainer(tmp_path / "vae").state_file
