"""Stage 1: a star equals its pairs, the loss is the weighted flow error, identity mapping."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anchoredit_model.config import TransformerConfig
from anchoredit_model.networks.transformer import CausalWanTransformer
from train.config import PretrainConfig
from train.data.source import Batch
from train.stages.pretrain import PretrainStage, as_pairs, edit_region_weight
from train.stages.stage import RandomStreams
from train.weight_init import initialise, widen_text

SIZES = TransformerConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, text_dim=24)


def small_model() -> CausalWanTransformer:
    torch.manual_seed(0)
    model = CausalWanTransformer(SIZES)
    initialise(model)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    return model


def stage_with(model, **settings) -> PretrainStage:
    """The stage around any model, without the engine."""
    stage = PretrainStage.__new__(PretrainStage)
    stage.settings, stage.stride, stage.slots = PretrainConfig(steps=1, **settings), 4, "bounded"
    stage.networks = {"model": SimpleNamespace(forward=model, module=model)}
    return stage


def streams(step: int = 0) -> RandomStreams:
    return RandomStreams.of(1, "pretrain", "model", step, 0, torch.device("cpu"))


def sessions(count: int, turns: int, star: bool) -> Batch:
    return Batch(torch.randn(count, turns + 1, 16, 4, 4), torch.randn(count, turns + 1, 3, 24), star)


class FixedNoise(RandomStreams):
    """The same noise for every frame of one shape, to compare batches that are arranged differently."""

    def noise(self, shape):
        return torch.linspace(-1, 1, 16 * 4 * 4).view(16, 4, 4).expand(shape)


def test_a_star_has_the_loss_of_its_pairs():
    """Three edits that attend to one source have the loss of three pairs."""
    model = small_model()
    star = sessions(2, 3, star=True)
    apart = Batch(
        torch.stack([star.latents[:, :1].expand(-1, 3, -1, -1, -1), star.latents[:, 1:]], 2).flatten(0, 1),
        torch.stack([star.text[:, :1].expand(-1, 3, -1, -1), star.text[:, 1:]], 2).flatten(0, 1),
        star=True,
    )
    stage = stage_with(model, identity_prob=0.0, instruction_dropout=0.0, edit_region_weight=2.0)
    losses = []
    for batch in (star, apart):
        fixed = FixedNoise(streams().local, streams().shared)
        losses.append(stage.loss("model", batch, fixed, 0.0))
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=1e-5)


def test_chains_are_split_into_pairs():
    chain = sessions(2, 3, star=False)
    apart = as_pairs(chain)
    assert apart.star and apart.latents.shape[:2] == apart.text.shape[:2] == (6, 2)
    assert torch.equal(apart.latents[4], chain.latents[1, 1:3])
    assert torch.equal(apart.text[4, 0], chain.text[1, 0]) and torch.equal(apart.text[4, 1], chain.text[1, 2])


def test_the_loss_is_the_weighted_flow_error():
    """The loss of a model that predicts zero can be computed by hand."""
    latents = torch.randn(64, 3, 16, 8, 8)
    latents[:, 1, :, :, 4:] = latents[:, 0, :, :, 4:]  # half of the first edit changes nothing
    stage = stage_with(lambda sequence, *_: torch.zeros_like(sequence), identity_prob=0.0, edit_region_weight=3.0)
    loss = stage.loss("model", Batch(latents, torch.zeros(64, 3, 2, 24), star=True), streams(), 0.0)
    small = latents[:, :1].clone()
    small[..., 0, 0] += 1  # one of 64 positions counts as much as half of them
    weight = edit_region_weight(small, latents[:, :1], 3.0)
    torch.testing.assert_close(weight[..., 0, 0], torch.full((64, 1, 1), 1 + 3.0 * 64))
    torch.testing.assert_close(weight.mean(dim=(-2, -1)), torch.full((64, 1, 1), 1 + 3.0))
    weight = edit_region_weight(latents[:, 1:], latents[:, :1], 3.0)
    assert set(weight.unique().tolist()) == {1.0, 4.0, 7.0}
    energy = latents[:, 1:].square() + 1  # E (noise - x)^2
    torch.testing.assert_close(loss, (energy * weight).mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["identity_prob", "instruction_dropout"])
def test_identity_mapping_targets_the_source_and_both_drop_the_instruction(name):
    seen = []

    def model(sequence, times, text, *_):
        seen.append((sequence, times, text))
        return torch.zeros_like(sequence)

    batch = sessions(4, 2, star=True)
    stage = stage_with(model, **{"identity_prob": 0.0, "instruction_dropout": 0.0, name: 1.0})
    stage.loss("model", batch, streams(), 0.0)
    (sequence, times, text), sigma = seen[0], None
    assert torch.equal(text, batch.text[:, :1].expand_as(text))
    target = batch.latents[:, :1].expand(-1, 2, -1, -1, -1) if name == "identity_prob" else batch.latents[:, 1:]
    sigma = (times[:, 1:] / 1000)[..., None, None, None]
    noisy = sequence.transpose(1, 2)[:, 1:]
    noise = (noisy - (1 - sigma) * target) / sigma
    assert (times[:, 0] == 0).all() and abs(noise.std() - 1) < 0.1 and abs((noise * target).mean()) < 0.1


@pytest.mark.slow
def test_training_learns_and_noise_is_determined_by_the_step():
    model, batch = small_model(), sessions(8, 2, star=True)
    stage = stage_with(model, instruction_dropout=0.0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = stage.loss("model", batch, streams(step), 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    with torch.no_grad():
        again = [stage.loss("model", batch, streams(step), 0.0) for step in (3, 3, 4)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_widened_weights_equal_the_narrow_ones_on_zero_padded_text():
    narrow = small_model().eval()
    wide = CausalWanTransformer(TransformerConfig.from_json({**SIZES.to_json(), "text_dim": 40})).eval()
    wide.load_state_dict(widen_text(narrow.state_dict(), 40))
    latents, times, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([[0.0, 500.0]]), torch.randn(1, 2, 3, 24)
    with torch.no_grad():
        expected = narrow(latents, times, text)
        ours = wide(latents, times, torch.nn.functional.pad(text, (0, 16)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
