"""The samplers against closed forms: a model that knows the answer, and one that is linear."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from anchoredit_model.config import EditConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.noise import turn_generator, turn_noise, variation_seeds
from anchoredit_model.samplers import euler, guided, nearest_sigma, renoise, shifted_sigmas
from anchoredit_model.sampling import sample, with_steps

SHAPE = (16, 4, 6)
TIMES = (1000, 750, 500, 250)
CLEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


class KnownFlow:
    """Predict the flow to a known clean latent, and record the calls."""

    def __init__(self, clean=CLEAN):
        self.clean = clean
        self.calls: list[tuple[torch.Tensor, float]] = []

    def __call__(self, x, time):
        self.calls.append((x.clone(), time))
        return (x - self.clean) / (time / 1000)


def noises(count: int, seed: int = 3, turn: int = 1) -> list[torch.Tensor]:
    generator = turn_generator(seed, turn)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def noise(seed: int = 3, turn: int = 1):
    return turn_noise(SHAPE, turn_generator(seed, turn))


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("seed", "turn", "first"),
    [
        (0, 1, (0.0963229, -2.4268224, 1.2382834)),
        (7, 2, (0.6403620, 0.6138121, -1.2227961)),
        (-1, 1, (-2.1044881, 0.6522561, -0.5987047)),
        (10**30, 300, (-0.6932190, 0.3384489, 0.3493761)),
    ],
)
def test_noise_of_a_turn_is_reproducible(seed, turn, first):
    """Sessions name their seeds, so a change of these numbers would change every session that is sampled again."""
    x = torch.randn(SHAPE, generator=turn_generator(seed, turn)).flatten()
    torch.testing.assert_close(x[:3], torch.tensor(first), atol=1e-5, rtol=0)


def test_turns_and_seeds_have_different_noise():
    seeds = (0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**100, -(10**100))
    first = {tuple(torch.randn(4, generator=turn_generator(seed, turn)).tolist()) for seed in seeds for turn in (1, 2)}
    assert len(first) == 2 * len(seeds)


def test_seeds_of_variations():
    assert variation_seeds(7, 4) == [7, 277212384312085, 159326870150411, 171839463784024]
    assert variation_seeds(7, 9)[:4] == variation_seeds(7, 4)
    seeds = [seed for turn in range(40) for seed in variation_seeds(turn, 16)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**53 for seed in seeds)  # what a browser's number holds exactly
    for count in (0, -1):
        with pytest.raises(AnchorEditError, match=f"number of variations must be 1 or more, got {count}"):
            variation_seeds(7, count)


# ---------------------------------------------------------------- re-noising and Euler


def test_renoise_recovers_the_clean_image_of_an_exact_flow():
    model = KnownFlow()
    torch.testing.assert_close(renoise(model, noise(), TIMES), CLEAN, atol=2e-6, rtol=0)
    assert [time for _, time in model.calls] == list(TIMES)
    for (x, time), fresh in zip(model.calls, noises(4), strict=True):  # every step on noise of its own
        level = time / 1000
        torch.testing.assert_close(x, (1 - level) * CLEAN + level * fresh, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_euler_recovers_the_clean_image_of_an_exact_flow(shift):
    model, sigmas = KnownFlow(), shifted_sigmas(7, shift)
    torch.testing.assert_close(euler(model, noise(), sigmas), CLEAN, atol=2e-6, rtol=0)
    (first,) = noises(1)
    assert len(model.calls) == 7
    for (x, time), sigma in zip(model.calls, sigmas[:-1].tolist(), strict=True):  # all on the line to the first noise
        assert time == pytest.approx(1000 * sigma)
        torch.testing.assert_close(x, (1 - sigma) * CLEAN + sigma * first, atol=5e-6, rtol=0)


def test_a_linear_model_gives_the_closed_form():
    rate, sigmas = 0.3, shifted_sigmas(5, 3.0)
    factor = math.prod(1 + (after - before) * rate for before, after in pairwise(sigmas.tolist()))
    (first, second) = noises(2)
    torch.testing.assert_close(euler(lambda x, _: rate * x, noise(), sigmas), factor * first, atol=1e-6, rtol=1e-5)
    once = (1 - rate) * first
    twice = (1 - 0.5 * rate) * (0.5 * once + 0.5 * second)
    torch.testing.assert_close(renoise(lambda x, _: rate * x, noise(), (1000, 500)), twice, atol=1e-6, rtol=1e-5)


def test_given_noise_levels_replace_those_of_time():
    levels = {1000: 0.9, 500: 0.6}
    x0 = renoise(lambda x, time: (x - CLEAN) / levels[time], noise(), tuple(levels), tuple(levels.values()))
    torch.testing.assert_close(x0, CLEAN, atol=2e-6, rtol=0)
    with pytest.raises(ValueError):
        renoise(KnownFlow(), noise(), (1000, 500), (0.9,))


@pytest.mark.parametrize("euler_rule", [False, True])
def test_constrained_latents_are_bit_exact(euler_rule):
    before = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    inside = torch.zeros(1, 4, 6, dtype=torch.bool)
    inside[:, 1:3, 2:5] = True
    outside = ~inside.expand(SHAPE)
    model = KnownFlow()

    def constraint(x0):
        return torch.where(inside, x0, before)

    if euler_rule:
        x0 = euler(model, noise(), shifted_sigmas(4, 2.0), constraint=constraint)
        fresh = noises(1) * 4
    else:
        x0 = renoise(model, noise(), TIMES, constraint=constraint)
        fresh = noises(4)
    assert torch.equal(x0[outside], before[outside])
    torch.testing.assert_close(x0[~outside], CLEAN[~outside], atol=5e-6, rtol=0)
    for (x, time), drawn in zip(model.calls[1:], fresh[1:], strict=True):  # the model sees it noised as its time says
        level = time / 1000
        wanted = (1 - level) * before + level * drawn
        torch.testing.assert_close(x[outside], wanted[outside], atol=5e-6, rtol=0)


def test_steps_are_reported_and_can_be_cancelled():
    for sampler, levels in ((renoise, TIMES), (euler, shifted_sigmas(4, 1.0))):
        seen = []
        sampler(KnownFlow(), noise(), levels, on_step=lambda done, total, x0, seen=seen: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

        def stop(done, total, x0):
            raise KeyboardInterrupt

        model = KnownFlow()
        with pytest.raises(KeyboardInterrupt):
            sampler(model, noise(), levels, on_step=stop)
        assert len(model.calls) == 1


# ---------------------------------------------------------------- guidance, times, levels


def test_guidance_is_linear_and_cfg_one_skips_the_negative_pass():
    def conditional(x, time):
        return 3 * x + time

    def unconditional(x, time):
        return x

    x = torch.ones(SHAPE)
    for cfg in (0.0, 0.5, 2.0, 5.0):
        flow = guided(conditional, unconditional, cfg)(x, 10.0)
        torch.testing.assert_close(flow, x + cfg * (2 * x + 10.0))
    assert guided(conditional, None, 1) is conditional


def test_number_of_steps():
    edit = EditConfig()
    assert with_steps(edit, None) is edit
    assert with_steps(edit, 4).timesteps == TIMES and with_steps(edit, 1).timesteps == (1000,)
    most = with_steps(edit, 1000)
    assert most.timesteps == tuple(range(1000, 0, -1)) and most.num_steps == 1000
    for count in (0, -3, 1001, 10**18):
        with pytest.raises(AnchorEditError, match=f"^steps must be 1 to 1000, got {count}"):
            with_steps(edit, count)


def test_noise_levels():
    torch.testing.assert_close(shifted_sigmas(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    shifted = shifted_sigmas(50, 5.0)
    assert shifted[0] == 1 and shifted[-1] == 0 and (shifted.diff() < 0).all()
    assert shifted[25].item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    grid = torch.tensor([1.0, 0.8, 0.3])
    assert nearest_sigma(torch.tensor([[999.0, 500.0], [700.0, 0.0]]), grid).tolist() == [
        pytest.approx([1.0, 0.3]),
        pytest.approx([0.8, 0.3]),
    ]


def test_sampler_follows_from_the_checkpoint():
    calls = {}
    for edit in (EditConfig(), EditConfig(sampler="euler", num_steps=3, shift=8.0)):
        model = KnownFlow()
        x0 = sample(model, SHAPE, edit, session_seed=3, turn=1)
        torch.testing.assert_close(x0, CLEAN, atol=5e-6, rtol=0)
        calls[edit.sampler] = [time for _, time in model.calls]
        assert torch.equal(model.calls[0][0], noises(1)[0])
    assert calls["renoise"] == list(TIMES)
    assert calls["euler"] == pytest.approx((1000 * shifted_sigmas(3, 8.0)[:-1]).tolist())
