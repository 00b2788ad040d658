"""Self-rollout and the training forward equal inference, and no turn sees a later one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.networks.full_sequence import sequence_denoiser
from anchoredit_model.networks.transformer import CausalWanTransformer
from anchoredit_model.noise import turn_generator, turn_noise
from anchoredit_model.samplers import renoise
from train.stages.forcing import forcing_views, turns_denoiser
from train.stages.rollout import (
    SessionCache,
    last_step_x0,
    one_pass,
    replace_frames,
    rollout,
    rollout_probability,
    sample_replaced,
    turns_at,
)
from train.stages.timesteps import sigma_of

SIZES = TransformerConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, text_dim=24)
SESSIONS, TURNS = 3, 5
SLIDING = MemoryPolicy(anchor_frames=1, window=2)


def small_transformer() -> CausalWanTransformer:
    torch.manual_seed(0)
    return CausalWanTransformer(SIZES)


def sessions(frames: int = TURNS + 1) -> tuple[Tensor, Tensor]:
    """Latents [B, frames, C, h, w], not square, and texts [B, frames, rows, E]."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(SESSIONS, frames, 16, 4, 6, generator=generator)
    null, words = torch.randn(2, 24, generator=generator), torch.randn(SESSIONS, frames - 1, 2, 24, generator=generator)
    return latents, frame_texts(null, words)


def frame_texts(null: Tensor, instructions: Tensor) -> Tensor:
    """Texts [B, T + 1, rows, E], padded with zero rows, of null [rows, E] and instructions [B, T, rows, E]."""
    rows = max(len(null), instructions.shape[2])
    null, instructions = (F.pad(text, (0, 0, 0, rows - text.shape[-2])) for text in (null, instructions))
    return torch.cat([null.expand(len(instructions), 1, -1, -1), instructions], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"sampler": "euler", "num_steps": 3, "shift": 3.0, "cfg": 2.0}],
    ids=["few steps", "Euler with guidance"],
)
def test_a_batched_rollout_equals_the_pipeline(small_model: Path, options: dict):
    """Three sessions at once equal, turn by turn, those of the pipeline with the same noise."""
    from anchoredit_model.pipeline import AnchorEditPipeline

    pipeline = AnchorEditPipeline.from_pretrained(small_model)
    pipeline.backbone.edit = edit = replace(pipeline.edit, **options)
    pipeline.kv_cache.edit = edit
    images = torch.rand(SESSIONS, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    instructions = [[f"make circle {turn} of {session} red" for turn in range(TURNS)] for session in range(SESSIONS)]
    expected = []
    for session, image in enumerate(images):
        memory = pipeline.start(image, SLIDING)
        for instruction in instructions[session]:
            memory = pipeline.turn(memory, instruction, seed=session)
        expected.append(torch.stack([turn.latent for turn in memory.turns]))
    expected = torch.stack(expected)

    encode = pipeline.text_encoder.encode
    rows = [row for words in instructions for row in encode(words)]
    words = pad_sequence(rows, batch_first=True).unflatten(0, (SESSIONS, TURNS))
    text = frame_texts(encode([""])[0], words)
    count = len(edit.timesteps) if edit.sampler == "renoise" else 1
    noise = torch.empty(TURNS, count, SESSIONS, *expected.shape[2:])
    for turn in range(TURNS):
        for session in range(SESSIONS):
            source = turn_noise(expected.shape[2:], turn_generator(session, turn + 1))
            for step in range(count):
                noise[turn, step, session] = next(source)
    made = rollout(SessionCache(pipeline.backbone.transformer, SLIDING), expected[:, :1], text, noise, edit)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert (made[:, 1:] - made[:, :-1]).abs().amax(dim=(2, 3, 4)).min() > 0.1  # turns differ


@pytest.mark.parametrize("policy", [None, SLIDING], ids=["all", "sliding window"])
@pytest.mark.parametrize("slots", ["bounded", "absolute"])
@torch.no_grad()
def test_the_training_forward_equals_the_cached_one(policy: MemoryPolicy | None, slots: str):
    """All noisy turns behind a clean history at once, and each of them from the K/V cache."""
    model = small_transformer()
    latents, text = sessions()
    noisy = torch.randn(SESSIONS, TURNS, 16, 4, 6)
    times = torch.rand(SESSIONS, TURNS) * 1000
    together = turns_denoiser(model, latents[:, :TURNS], text, policy, slots)(noisy, times)
    cache = SessionCache(model, policy, slots)
    for turn in range(1, TURNS + 1):
        cache.encode_frame(latents[:, turn - 1], text[:, turn - 1 : turn])
        now = slice(turn - 1, turn)
        alone = cache.denoiser(text[:, turn : turn + 1])(noisy[:, now], times[:, now])
        torch.testing.assert_close(together[:, now], alone, atol=1e-5, rtol=0)


def test_frames_outside_the_window_are_dropped():
    latents, text = sessions()
    cache, held = SessionCache(small_transformer(), SLIDING), []
    for frame in range(TURNS + 1):
        cache.encode_frame(latents[:, frame], text[:, frame : frame + 1])
        held.append(cache.nbytes)
    assert held == [held[0] * frames for frames in (1, 2, 3, 3, 3, 3)]


@torch.no_grad()
def test_a_noisy_turn_depends_only_on_its_history():
    model = small_transformer()
    latents, text = sessions()
    noisy, times = torch.randn(SESSIONS, TURNS, 16, 4, 6), torch.full((SESSIONS, TURNS), 400.0)
    before = turns_denoiser(model, latents[:, :TURNS], text)(noisy, times)

    def changed(after: Tensor) -> list[bool]:
        return [(before[:, turn] - after[:, turn]).abs().max().item() > 1e-6 for turn in range(TURNS)]

    other = noisy.clone()
    other[:, 2] += 1
    assert changed(turns_denoiser(model, latents[:, :TURNS], text)(other, times)) == [False, False, True, False, False]
    other = latents[:, :TURNS].clone()
    other[:, 2] += 1  # frame 2 is history of turns 3, 4, 5
    assert changed(turns_denoiser(model, other, text)(noisy, times)) == [False, False, True, True, True]
    other = text.clone()
    other[:, 4] += 10  # turn 4's instruction: of its noisy frame, and of the history that turn 5 sees
    assert changed(turns_denoiser(model, latents[:, :TURNS], other)(noisy, times)) == [False, False, False, True, True]
    assert len(forcing_views(TURNS)) == 2 * TURNS


def test_frames_that_are_not_replaced_stay_true_and_are_attended_to():
    model, edit = small_transformer(), EditConfig(timesteps=(1000, 500))
    latents, text = sessions()
    noise = torch.randn(TURNS, 2, SESSIONS, 16, 4, 6)
    replaced = torch.zeros(SESSIONS, TURNS + 1, dtype=torch.bool)
    replaced[1, 2] = replaced[:, TURNS] = True
    made = rollout(SessionCache(model), latents, text, noise, edit, replaced)
    assert not made.requires_grad
    kept = ~replaced
    assert torch.equal(made[kept], latents[kept])
    assert not torch.isclose(made[replaced], latents[replaced]).any(dim=1).all()

    history = made[:, :TURNS]  # its own frame 2 in session 1, the truth elsewhere
    predict = sequence_denoiser(model, history, text)
    with torch.no_grad():
        last = renoise(
            lambda x, time: predict(x, torch.full((SESSIONS, 1), time)), iter(noise[-1, :, :, None]), edit.timesteps
        )
    torch.testing.assert_close(made[:, TURNS:], last, atol=1e-5, rtol=0)


def test_only_the_last_step_has_a_gradient():
    """With a model that predicts a * x, every step can be computed by hand."""
    a = torch.tensor(0.3, requires_grad=True)
    noise = torch.randn(3, 2, 1, 16, 4, 4)
    times, sigmas = (1000, 750, 500, 250), (1.0, 0.8, 0.6, 0.4)
    x0 = last_step_x0(lambda x, t: a * x, noise, 2, times, sigmas)
    x = noise[0]
    for sigma, lower, fresh in ((1.0, 0.8, noise[1]), (0.8, 0.6, noise[2])):
        x = (1 - lower) * (x - sigma * 0.3 * x) + lower * fresh
    torch.testing.assert_close(x0, x - 0.6 * 0.3 * x)
    x0.sum().backward()
    torch.testing.assert_close(a.grad, (-0.6 * x).sum())


def test_the_last_step_equals_the_sampler():
    model = small_transformer()
    latents, text = sessions(3)
    cache, edit = SessionCache(model), EditConfig()
    noise = torch.randn(2, 4, SESSIONS, 16, 4, 6)
    made = rollout(cache, latents, text, noise, edit)
    assert cache.frames == 2
    x0 = last_step_x0(cache.denoiser(text[:, 2:]), noise[1, :, :, None], 3, edit.timesteps)
    torch.testing.assert_close(x0[:, 0], made[:, 2], atol=1e-5, rtol=0)
    assert x0.requires_grad


def test_one_pass_predicts_from_the_noisy_truth():
    clean, noise = torch.randn(2, 3, 16, 4, 4), torch.randn(2, 3, 16, 4, 4)
    times = torch.tensor([[0.0, 300.0, 1000.0], [50.0, 600.0, 900.0]])
    made = one_pass(lambda x, t: noise - clean, clean, noise, times, sigma_of(times))
    torch.testing.assert_close(made, clean, atol=1e-5, rtol=0)
    replaced = torch.tensor([[False, True, False], [False, False, False]])
    mixed = replace_frames(clean, made + 1, replaced)
    assert torch.equal(mixed[~replaced], clean[~replaced]) and torch.equal(mixed[replaced], (made + 1)[replaced])


def test_neither_the_anchor_nor_the_last_frame_is_replaced():
    replaced = sample_replaced(4000, 6, 0.3, torch.Generator().manual_seed(0))
    assert not replaced[:, 0].any() and not replaced[:, -1].any()
    assert 0.28 < replaced[:, 1:-1].float().mean() < 0.32
    again = sample_replaced(4000, 6, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(replaced, again)
    assert sample_replaced(8, 6, 1.0, torch.Generator())[:, 1:-1].all()


def test_schedules_of_turns_and_rollouts():
    assert [turns_at(progress / 10, 2, 5, 0.6) for progress in range(11)] == [2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5]
    assert turns_at(0.0, 3, 3, 0.0) == 3
    shares = [rollout_probability(progress / 10, 0.2, 0.6, 0.5) for progress in range(11)]
    assert shares[:3] == [0, 0, 0] and shares[6:] == [0.5] * 5 and shares == sorted(shares)
    assert abs(shares[4] - 0.25) < 1e-9
    assert rollout_probability(0.0, 0.0, 0.0, 0.5) == 0.5  # from the start
