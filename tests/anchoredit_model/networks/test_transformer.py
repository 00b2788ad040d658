"""Causality, the cache against the whole sequence, exactness of the shared padding row, and stock diffusers."""

from __future__ import annotations

import pytest
import torch

from anchoredit_model.checkpoint.keymap import to_wan_name
from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.memory.visibility import FrameView, bidirectional_views, frame_view, sequence_views
from anchoredit_model.networks.transformer import CausalWanTransformer

SIZES = TransformerConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=3, freq_dim=32, text_dim=24)


@pytest.fixture(scope="module")
def model() -> CausalWanTransformer:
    torch.manual_seed(0)
    return CausalWanTransformer(SIZES).eval()


def sequence(frames: int, batch: int = 1, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 16, frames, 6, 8, generator=generator)
    times = 1000 * torch.rand(batch, frames, generator=generator)
    return latents, times, torch.randn(batch, frames, 5, SIZES.text_dim, generator=generator)


def test_later_frames_do_not_affect_earlier_ones(model):
    latents, times, text = sequence(4)
    changed = [tensor.clone() for tensor in (latents, times, text)]
    changed[0][:, :, 2] += 1
    changed[1][:, 2] += 100
    changed[2][:, 2] += 1
    with torch.no_grad():
        before, after = model(latents, times, text), model(*changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert (before[:, :, 2:] - after[:, :, 2:]).abs().amin(dim=(0, 1, 3, 4)).min() > 0


@pytest.mark.parametrize(
    "policy,frame,expected",
    [
        (None, 2, [True, True, True, False, False]),
        (MemoryPolicy(anchor_frames=1, window=0), 4, [True, False, False, False, True]),
        # frame 3 has seen frame 2 and so on: what streams reaches further than what is visible
        (MemoryPolicy(anchor_frames=0, window=1), 3, [True, True, True, True, False]),
    ],
)
def test_gradients_reach_only_visible_frames(model, policy, frame, expected):
    latents, times, text = sequence(5)
    latents.requires_grad_()
    flow = model(latents, times, text, sequence_views(5, policy))[:, :, frame].square().sum()
    (gradient,) = torch.autograd.grad(flow, latents)
    assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).tolist() == expected


def test_bidirectional_frames_see_later_ones(model):
    latents, times, text = sequence(3)
    changed = latents.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        views = bidirectional_views(3)
        moved = (model(latents, times, text, views) - model(changed, times, text, views)).abs()
    assert moved[:, :, 0].max() > 1e-3


@pytest.mark.parametrize(
    "policy", [None, MemoryPolicy(1, 1), MemoryPolicy(1, 2), MemoryPolicy(0, 2), MemoryPolicy(2, 0)]
)
@pytest.mark.parametrize("slots", ["bounded", "absolute"])
def test_cached_turns_equal_the_sequence(model, policy, slots):
    """Clean frames encoded one by one into the cache, against one forward over all of them at t = 0."""
    frames = 6
    latents, _, text = sequence(frames)
    # a frame's keys depend on what it saw, in the sequence as in the cache
    views = sequence_views(frames, policy, slots)
    with torch.no_grad():
        whole = model(latents, torch.zeros(1, frames), text, views)
        past = []
        for number in range(frames):
            view = views[number]
            seen = tuple(past[frame] for frame in view.frames)
            kv, flow = model.encode_frame(
                latents[:, :, number : number + 1], text[:, number : number + 1], view, 4, seen
            )
            torch.testing.assert_close(flow, whole[:, :, number : number + 1], atol=1e-5, rtol=0)
            past.append(kv)


def test_noisy_turn_on_a_cache_equals_the_sequence(model):
    latents, times, text = sequence(4)
    times[:, :3] = 0
    with torch.no_grad():
        whole = model(latents, times, text)
        past = []
        for number in range(3):
            one = slice(number, number + 1)
            view = frame_view(number, MemoryPolicy(0, 9))
            past.append(model.encode_frame(latents[:, :, one], text[:, one], view, 4, tuple(past))[0])
        context = model.embed_text(text[:, 3:])
        flow = model(latents[:, :, 3:], times[:, 3:], context, (frame_view(3, MemoryPolicy(0, 9)),), 4, tuple(past))
        # batch rows may share K/V of batch 1, as the two branches of guidance do
        two = model(
            latents[:, :, 3:].repeat(2, 1, 1, 1, 1),
            times[:, 3:].repeat(2, 1),
            text[:, 3:].repeat(2, 1, 1, 1),
            (frame_view(3, MemoryPolicy(0, 9)),),
            4,
            tuple(past),
        )
    torch.testing.assert_close(flow, whole[:, :, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(two, flow.repeat(2, 1, 1, 1, 1), atol=1e-5, rtol=0)


def test_only_distances_between_slots_matter(model):
    latents, times, text = sequence(2)
    with torch.no_grad():
        near = model(latents, times, text, (FrameView((), (), 0), FrameView((0,), (0,), 1)))
        moved = model(latents, times, text, (FrameView((), (), 5), FrameView((0,), (5,), 6)))
        far = model(latents, times, text, (FrameView((), (), 0), FrameView((0,), (0,), 3)))
    torch.testing.assert_close(near, moved, atol=1e-5, rtol=0)
    assert (near - far)[:, :, 1].abs().max() > 1e-4


def test_one_padding_row_equals_full_padding(model):
    latents, times, text = sequence(2)
    padded = torch.nn.functional.pad(text, (0, 0, 0, SIZES.text_len - text.shape[2]))
    with torch.no_grad():
        torch.testing.assert_close(model(latents, times, text), model(latents, times, padded), atol=1e-5, rtol=0)


def test_gradient_checkpointing_keeps_the_gradients(model):
    latents, times, text = sequence(3)
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(latents, times, text).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    model.gradient_checkpointing = False
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_one_frame_equals_diffusers(model):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=SIZES.num_heads,
        attention_head_dim=SIZES.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=SIZES.text_dim,
        freq_dim=SIZES.freq_dim,
        ffn_dim=SIZES.ffn_dim,
        num_layers=SIZES.num_layers,
    ).eval()
    state = model.state_dict()
    theirs.load_state_dict({name: state[to_wan_name(name)] for name in theirs.state_dict()})
    latents, _, text = sequence(1)
    padded = torch.nn.functional.pad(text[:, 0], (0, 0, 0, SIZES.text_len - text.shape[2]))
    with torch.no_grad():
        expected = theirs(latents, torch.tensor([437.0]), padded, return_dict=False)[0]
        ours = model(latents, torch.tensor([[437.0]]), text)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_repeated_padding_rows_equal_a_weighted_one(model):
    """The path used on GPUs, run on the CPU."""
    latents, times, text = sequence(2)
    with torch.no_grad():
        counted, repeated = model.embed_text(text), model.embed_text(text, expand=True)
        assert repeated.bias is None and repeated.keys[0].shape[1] == SIZES.text_len
        torch.testing.assert_close(model(latents, times, counted), model(latents, times, repeated), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="600 text rows"):
        model.embed_text(torch.zeros(1, 1, 600, SIZES.text_dim))


def test_bfloat16_stays_close_to_float32(model):
    latents, times, text = sequence(3)
    half = CausalWanTransformer(SIZES).eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        exact, rounded = model(latents, times, text), half.bfloat16()(latents, times, text).float()
    assert (rounded - exact).norm() < 0.02 * exact.norm()
