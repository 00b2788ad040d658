"""The losses on cases with known answers."""

from __future__ import annotations

import pytest
import torch

from train.stages.losses import (
    add_noise,
    consistency_loss,
    critic_loss,
    distribution_gradient,
    flow_matching_loss,
    frame_weights,
    generator_loss,
    x0_of,
)
from train.stages.timesteps import consistency_times, sigma_of

SHAPE = (2, 4, 16, 4, 6)  # [B, F, C, h, w]


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def points_to(clean: torch.Tensor, scale: float = 1.0):
    """The exact flow if all data is the point `clean`: (x - clean) / sigma."""

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return scale * (noisy - clean) / sigma_of(times).clamp(min=1e-6)[..., None, None, None]

    return predict


def test_noisy_latents_are_linear_in_sigma():
    clean, noise, times = latents(0), latents(1), torch.tensor([[0.0, 1.0, 500.0, 1000.0]] * 2)
    noisy = add_noise(clean, noise, sigma_of(times))
    assert torch.equal(noisy[:, 0], clean[:, 0]) and torch.equal(noisy[:, 3], noise[:, 3])
    torch.testing.assert_close(x0_of(noisy, noise - clean, sigma_of(times)), clean)


def test_weights_grow_with_the_turn_and_are_zero_for_anchor_replaced_and_clean_frames():
    replaced = torch.tensor([[False, True, False, False], [False, False, False, False]])
    times = torch.tensor([[500.0, 500.0, 500.0, 500.0], [0.0, 0.0, 0.0, 700.0]])
    expected = torch.tensor([[0.0, 0.0, 1.5, 2.0], [0.0, 0.0, 0.0, 2.0]])
    assert torch.equal(frame_weights(3, 1.0, replaced, times), expected)
    assert torch.equal(frame_weights(1, 1.0), torch.tensor([[0.0, 1.0]]))


def test_flow_matching_weighs_frames_within_their_sample():
    clean, noise = latents(0), latents(1)
    error = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 4.0, 0.0, 1.0]])
    flow = (noise - clean + error[..., None, None, None]).requires_grad_()
    weights = torch.tensor([[0.0, 1.0, 1.5, 0.0], [0.0, 1.0, 1.0, 2.0]])
    loss = flow_matching_loss(flow, clean, noise, weights)
    torch.testing.assert_close(loss, torch.tensor(((1 + 1.5 * 4) / 2.5 + (16 + 0 + 2 * 1) / 4) / 2))
    loss.backward()
    assert not flow.grad[weights == 0].any() and flow.grad[0, 1].all()
    weights[1] = 0  # a sample without any weight is as if it were not there
    torch.testing.assert_close(flow_matching_loss(flow, clean, noise, weights), torch.tensor((1 + 1.5 * 4) / 2.5))
    assert flow_matching_loss(noise - clean, clean, noise) == 0
    everywhere = torch.full((2, 4, 1, 4, 6), 2.0)
    torch.testing.assert_close(flow_matching_loss(flow, clean, noise, None, everywhere), 2 * error.square().mean())


def test_an_exact_model_is_consistent():
    clean = latents(0)
    times = consistency_times((2, 4), torch.Generator().manual_seed(0))
    sigmas = tuple(sigma_of(time) for time in times)
    exact = points_to(clean)
    assert consistency_loss(exact, exact, exact, clean, latents(1), times, sigmas) < 1e-9
    off = (points_to(clean, 0.9), exact, exact, clean, latents(1), times, sigmas)
    assert consistency_loss(*off) > 1e-4
    twice = torch.full((2, 4, 1, 4, 6), 2.0)
    torch.testing.assert_close(consistency_loss(*off, twice), 2 * consistency_loss(*off))


def test_the_last_step_of_consistency_targets_the_teacher():
    """At t' = 0 the target does not depend on the EMA, only on the step of the teacher."""
    clean, noise = latents(0), latents(1)
    times = (torch.full((2, 4), 100.0), torch.zeros(2, 4))
    sigmas = tuple(sigma_of(time) for time in times)

    def loss(average):
        return consistency_loss(lambda x, t: x, average, lambda x, t: 3 * x, clean, noise, times, sigmas)

    noisy = add_noise(clean, noise, sigmas[0])
    expected = ((1 - 0.1) * noisy - (1 - 0.1 * 3) * noisy).square().mean()
    torch.testing.assert_close(loss(lambda x, t: 1e3 * x), expected)
    torch.testing.assert_close(loss(lambda x, t: -x), expected)


def test_consistency_has_a_gradient_only_for_the_student():
    clean, times = latents(0), (torch.full((2, 4), 800.0), torch.full((2, 4), 700.0))
    scale = [torch.tensor(1.0, requires_grad=True) for _ in range(3)]
    models = [lambda x, t, s=s: s * x for s in scale]
    consistency_loss(*models, clean, latents(1), times, tuple(sigma_of(time) for time in times)).backward()
    assert scale[0].grad and scale[1].grad is None and scale[2].grad is None


def test_distribution_matching_moves_from_the_fake_to_the_real():
    real, fake, noise = latents(0), latents(1), latents(2)
    x0 = latents(3).requires_grad_()
    time = torch.full((2, 4), 600.0)
    loss = generator_loss(x0, points_to(real), points_to(fake), noise, time, sigma_of(time))
    loss.backward()
    gradient = distribution_gradient(x0.detach(), real, fake)
    torch.testing.assert_close(x0.grad, gradient / x0.numel(), rtol=1e-3, atol=1e-8)
    distance = (x0.detach() - real).abs().mean(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(gradient * distance, fake - real)
    torch.testing.assert_close(loss.detach(), 0.5 * gradient.square().mean(), rtol=1e-3, atol=0)
    # each frame by its own distance from the real one, so that one far away does not drown the others
    far = x0.detach() + torch.tensor([0.0, 0.0, 100.0, 0.0])[:, None, None, None]
    own = distribution_gradient(far, real, fake)
    torch.testing.assert_close(own[:, [0, 1, 3]], gradient[:, [0, 1, 3]])
    assert own[:, 2].abs().mean() < 0.05 * gradient[:, 2].abs().mean()


def test_equal_scores_give_the_generator_no_gradient():
    x0, time = latents(3).requires_grad_(), torch.full((2, 4), 600.0)
    score = points_to(latents(0))
    generator_loss(x0, score, score, latents(2), time, sigma_of(time)).backward()
    assert not x0.grad.any()
    assert distribution_gradient(x0.detach(), x0.detach(), latents(1)).isfinite().all()  # nothing to divide by


def test_the_critic_loss_has_no_gradient_for_the_generator():
    x0 = latents(0).requires_grad_()
    time = torch.full((2, 4), 600.0)
    assert critic_loss(points_to(x0.detach()), x0, latents(1), time, sigma_of(time)) < 1e-9
    scale = torch.tensor(0.5, requires_grad=True)
    critic_loss(lambda x, t: scale * x, x0, latents(1), time, sigma_of(time)).backward()
    assert scale.grad and x0.grad is None


def test_rounded_times_are_an_error():
    with pytest.raises(TypeError, match="float32"):
        sigma_of(torch.tensor([995.7], dtype=torch.bfloat16))
