"""Sampled timesteps: the whole range that inference uses, reproducible from their generator."""

from __future__ import annotations

import torch

from train.stages.timesteps import TimestepConfig, consistency_times, forcing_times, sample_times, shifted

STEPS = (1000.0, 750.0, 500.0, 250.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_times_cover_the_whole_range():
    times = sample_times((20_000,), TimestepConfig(), generator())
    assert times.dtype == torch.float32 and 0 < times.min() < 2 and 998 < times.max() <= 1000
    assert abs(times.mean() - 500) < 10
    assert torch.equal(times, sample_times((20_000,), TimestepConfig(), generator()))


def test_sampler_timesteps_have_their_share():
    sampling = TimestepConfig(20, 980, sampler_timesteps=STEPS, sampler_weights=(0.4, 0.3, 0.2, 0.1), sampler_share=0.6)
    times = sample_times((100, 200), sampling, generator())
    shares = torch.tensor([(times == step).float().mean() for step in STEPS])
    torch.testing.assert_close(shares, 0.6 * torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.01, rtol=0)
    others = times[~torch.isin(times, torch.tensor(STEPS))]
    assert 20 < others.min() and others.max() <= 980


def test_a_shift_keeps_the_ends_and_moves_the_middle_towards_noise():
    times = torch.tensor([0.0, 500.0, 1000.0])
    torch.testing.assert_close(shifted(times, 5.0), torch.tensor([0.0, 2500 / 3, 1000.0]))
    assert torch.equal(shifted(times, 1.0), times)
    assert sample_times((10_000,), TimestepConfig(shift=5.0), generator()).median() > 800


def test_forcing_times_have_clean_histories_and_a_noisy_frame():
    times = forcing_times(4000, 6, TimestepConfig(), generator(), clean_history_prob=0.5)
    still = times == 0
    assert not still[:, -1].any()
    assert torch.equal(still, still.cumprod(dim=1).bool())  # clean frames are the first ones, without a gap
    assert 0.47 < still[:, 0].float().mean() < 0.53
    assert {count for count in still.sum(dim=1).tolist() if count} == {1, 2, 3, 4, 5}  # every k
    assert not (forcing_times(500, 3, TimestepConfig(), generator(), 0.0) == 0).any()


def test_consistency_times_are_neighbours_down_to_zero():
    time, later = consistency_times((20_000,), generator(), 48, 5.0)
    assert time.dtype == later.dtype == torch.float32
    grid = torch.cat([time, later]).unique()
    assert len(grid) == 49 and grid[0] == 0 and grid[-1] == 1000
    u = torch.arange(49, dtype=torch.float64) / 48
    torch.testing.assert_close(grid, (1000 * 5 * u / (1 + 4 * u)).float(), atol=1e-3, rtol=0)
    index = torch.searchsorted(grid, time)
    assert torch.equal(grid[index - 1], later)
