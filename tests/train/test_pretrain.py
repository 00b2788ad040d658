"""The first stage: what a noisy turn may see, what the loss is, and that training learns and goes on."""

from __future__ import annotations

import pytest
import torch

from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.transformer import CausalWanTransformer
from anchoredit_model.views import sequence_views
from train.pretrain import change_weight, flow_loss, learning_rate, sample_times, teacher_views, widen_text

SIZES = TransformerConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, text_dim=24)


def small_model() -> CausalWanTransformer:
    torch.manual_seed(0)
    return CausalWanTransformer(SIZES)


def test_a_noisy_turn_sees_what_it_sees_at_inference():
    """Noisy turn i behind clean turns gives the flow of a plain sequence of i clean turns and itself."""
    model, turns = small_model().eval(), 3
    clean, noisy = torch.randn(1, 16, turns, 4, 4), torch.randn(1, 16, turns, 4, 4)
    text, words = torch.randn(1, turns, 3, 24), torch.randn(1, turns, 3, 24)
    times = torch.tensor([[900.0, 500.0, 100.0]])
    with torch.no_grad():
        together = model(
            torch.cat([clean, noisy], 2),
            torch.cat([torch.zeros(1, turns), times], 1),
            torch.cat([text, words], 1),
            teacher_views(turns),
        )
        for turn in range(turns):
            alone = model(
                torch.cat([clean[:, :, : turn + 1], noisy[:, :, turn : turn + 1]], 2),
                torch.cat([torch.zeros(1, turn + 1), times[:, turn : turn + 1]], 1),
                torch.cat([text[:, : turn + 1], words[:, turn : turn + 1]], 1),
            )
            torch.testing.assert_close(together[:, :, turns + turn], alone[:, :, -1], atol=1e-5, rtol=0)


def test_edits_of_a_star_do_not_see_each_other():
    model = small_model().eval()
    latents, text = torch.randn(1, 16, 4, 4, 4), torch.randn(1, 4, 3, 24)
    views, times = sequence_views(4, MemoryPolicy(1, 0)), torch.tensor([[0.0, 700.0, 700.0, 700.0]])
    swapped = [0, 2, 1, 3]
    with torch.no_grad():
        flow = model(latents, times, text, views)
        other = model(latents[:, :, swapped], times, text[:, swapped], views)
    torch.testing.assert_close(flow[:, :, swapped], other, atol=1e-5, rtol=0)


def test_the_loss_is_the_weighted_flow_error():
    """A model that always answers zero has a loss that can be computed by hand."""
    latents = torch.randn(64, 3, 16, 8, 8)
    latents[:, 1, :, :, 4:] = latents[:, 0, :, :, 4:]  # half of the first edit changes nothing
    text = torch.zeros(64, 3, 2, 24)

    def nothing(sequence, *_):
        return torch.zeros_like(sequence)

    torch.manual_seed(1)
    loss = flow_loss(nothing, latents, text, "star", extra=3.0)
    small = latents[:, :1].clone()
    small[..., 0, 0] += 1  # one of 64 positions, against a tenth that weighs as it is
    weight = change_weight(small, latents[:, :1], 3.0)
    torch.testing.assert_close(weight[..., 0, 0], torch.full((64, 1, 1), 1 + 3.0 * 6.4))
    weight = change_weight(latents[:, 1:], latents[:, :1], 3.0)
    assert set(weight.unique().tolist()) == {1.0, 4.0}
    energy = latents[:, 1:].square() + 1  # E (noise - x)^2
    torch.testing.assert_close(loss, (energy * weight).mean(), rtol=0.02, atol=0)


def test_times_cover_the_whole_range_and_favour_the_samplers_own():
    times = sample_times(20_000)
    assert 0 < times.min() < 20 and times.max() == 1000
    own = torch.isin(times, torch.tensor([1000.0, 750.0, 500.0, 250.0])).float().mean()
    assert 0.55 < own < 0.65


@pytest.mark.parametrize("layout", ["star", "chain"])
def test_training_learns_both_layouts(layout):
    model = small_model()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    latents, text = 0.5 * torch.randn(8, 3, 16, 4, 4), torch.randn(8, 3, 3, 24)
    losses = []
    for _ in range(60):
        loss = flow_loss(model, latents, text, layout, extra=0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_widened_weights_read_zero_padded_text_alike():
    narrow = small_model().eval()
    wide = CausalWanTransformer(TransformerConfig.from_json({**SIZES.to_json(), "text_dim": 40})).eval()
    wide.load_state_dict(widen_text(narrow.state_dict(), 40))
    latents, times, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([[0.0, 500.0]]), torch.randn(1, 2, 3, 24)
    with torch.no_grad():
        expected = narrow(latents, times, text)
        ours = wide(latents, times, torch.nn.functional.pad(text, (0, 16)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    assert learning_rate(0, 1.0) == 0 and learning_rate(1, 1.0) == 0
    assert learning_rate(0.3, 1.0) == 1 and abs(learning_rate(0.8, 1.0) - 0.5) < 1e-9
