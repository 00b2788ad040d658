"""The memory as a value, and its keys and values: streamed, refreshed, evicted and recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anchoredit_model.config import EditConfig, KVCacheConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.geometry import fit_into
from anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from anchoredit_model.memory.frame_kv import FrameKV
from anchoredit_model.memory.kv_cache import KVCacheManager
from anchoredit_model.memory.kv_store import KVStore
from anchoredit_model.memory.visibility import frame_view
from anchoredit_model.networks.transformer import CausalWanTransformer

SIZES = TransformerConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, text_dim=24)
EDIT = EditConfig()


class CountingCache(KVCacheManager):
    """A K/V cache over a real model that counts its forwards."""

    def __init__(self, model, store=None, edit=EDIT, **options):
        self.model, self.forwards = model, 0
        super().__init__(self.encode, "model", edit, KVStore() if store is None else store, **options)

    def encode(self, latent, text, rows, view, past):
        self.forwards += 1
        return self.model.encode_frame(latent[None, :, None], text[None, None], view, self.edit.temporal_stride, past)[
            0
        ]

    def next_flow(self, memory, config=None):
        """The flow of a fixed noisy frame as the next turn would see it."""
        view, past = self.gather(memory, turn(99).text, config)
        noisy, time = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(7)), torch.tensor([[750.0]])
        with torch.no_grad():
            return self.model(noisy, time, turn(99).text[None, None], (view,), self.edit.temporal_stride, past)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CausalWanTransformer(SIZES).eval()


def turn(number: int) -> Turn:
    generator = torch.Generator().manual_seed(number)
    return Turn(
        torch.randn(16, 4, 6, generator=generator), f"edit {number}", torch.randn(3, 24, generator=generator), 0
    )


def start(policy: MemoryPolicy, config: KVCacheConfig | None = None) -> AnchorMemory:
    anchor, image = turn(0), torch.zeros(3, 32, 48)
    return AnchorMemory.start(anchor.latent, anchor.text[:1], image, fit_into(32, 48, 32, 48), policy, config)


def session(
    cache: KVCacheManager, turns: int, policy: MemoryPolicy, config: KVCacheConfig | None = None
) -> AnchorMemory:
    memory = start(policy, config)
    for number in range(1, turns + 1):
        cache.gather(memory, turn(number).text)
        memory = cache.commit(memory, turn(number))
    return memory


def test_memories_share_turns_and_are_immutable():
    one = start(MemoryPolicy()).commit(turn(1))
    left, right = one.commit(turn(2)), one.commit(turn(3))
    assert len(one) == 2 and len(left) == len(right) == 3
    assert all(a is b is c for a, b, c in zip(one.turns, left.turns, right.turns))
    assert left.rewind(1).turns == one.turns and left.rewind(0).last == 0
    assert left.with_policy(window=1).turns is left.turns and left.with_policy(window=1).policy.window == 1
    with pytest.raises(AnchorEditError, match="turn must be 0 to 2, got 3"):
        left.rewind(3)
    with pytest.raises(AnchorEditError, match="size the session was started with"):
        one.commit(Turn(torch.zeros(16, 8, 8), "", torch.zeros(1, 24)))


@pytest.mark.parametrize(
    "anchor,window,turn_number,frames", [(1, 2, 5, (0, 3, 4)), (1, 9, 3, (0, 1, 2)), (2, 0, 4, (0, 1))]
)
def test_visible_frames_and_slots(anchor, window, turn_number, frames):
    policy = MemoryPolicy(anchor, window)
    bounded, absolute = frame_view(turn_number, policy), frame_view(turn_number, policy, "absolute")
    assert bounded.frames == absolute.frames == frames
    assert bounded.slots == tuple(range(len(frames))) and bounded.slot == len(frames)
    assert absolute.slots == frames and absolute.slot == turn_number


def test_refresh_equals_a_forward_over_exactly_the_visible_frames(model):
    cache = CountingCache(model)
    memory = session(cache, 6, MemoryPolicy(1, 2, "refresh"))
    frames = [memory.turns[number] for number in memory.view().frames] + [turn(99)]
    noisy = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(7))
    latents = torch.cat([*(frame.latent[None, :, None] for frame in frames[:-1]), noisy], dim=2)
    times = torch.tensor([[0.0] * (len(frames) - 1) + [750.0]])
    rows = max(len(frame.text) for frame in frames)
    text = torch.stack([torch.nn.functional.pad(f.text, (0, 0, 0, rows - len(f.text))) for f in frames])[None]
    with torch.no_grad():
        whole = model(latents, times, text)
    torch.testing.assert_close(cache.next_flow(memory), whole[:, :, -1:], atol=1e-5, rtol=0)


def test_refresh_and_stream_differ_only_once_the_window_slides(model):
    flows = {}
    for history in ("stream", "refresh"):
        for turns in (2, 5):
            cache = CountingCache(model)
            flows[history, turns] = cache.next_flow(session(cache, turns, MemoryPolicy(1, 2, history)))
    torch.testing.assert_close(flows["stream", 2], flows["refresh", 2], atol=1e-5, rtol=0)
    assert (flows["stream", 5] - flows["refresh", 5]).abs().max() > 1e-4


@pytest.mark.parametrize("history", ["stream", "refresh"])
def test_evicted_entries_are_recomputed_bit_for_bit(model, history):
    cache = CountingCache(model)
    memory = session(cache, 6, MemoryPolicy(1, 2, history))
    undisturbed = cache.next_flow(memory)
    cache.store.retain(())
    assert torch.equal(cache.next_flow(memory), undisturbed)


def test_evicted_entry_costs_one_forward(model):
    cache = CountingCache(model)
    memory = session(cache, 8, MemoryPolicy(1, 2))
    cache.gather(memory, turn(9).text)
    assert cache.forwards == 9  # every frame was encoded once
    keys = list(cache.store._entries)
    cache.store.retain(keys[:-1])  # the newest turn is evicted
    cache.gather(memory, turn(9).text)
    assert cache.forwards == 10
    cache.store.retain(())
    cache.gather(memory, turn(9).text)
    assert cache.forwards == 19


def test_recomputation_is_reported_and_can_be_cancelled(model):
    class Stop(Exception):
        pass

    def stop(done, total):
        reported.append((done, total))
        if done == 2:
            raise Stop

    cache, reported = CountingCache(model), []
    memory = session(cache, 5, MemoryPolicy(1, 2))
    undisturbed = cache.next_flow(memory)
    again = CountingCache(model, on_encode=stop)
    with pytest.raises(Stop):
        again.next_flow(memory)
    assert reported == [(0, 6), (1, 6), (2, 6)]
    again.on_encode, reported = (lambda *step: reported.append(step)), []
    assert torch.equal(again.next_flow(memory), undisturbed)
    assert reported == [(done, 4) for done in range(5)]  # what was encoded before the stop is kept
    reported.clear()
    again.next_flow(memory)
    assert reported == []


def test_budget_keeps_visible_frames_and_does_not_change_results(model):
    free, tight = CountingCache(model), CountingCache(model, KVStore(budget=0))
    policy = MemoryPolicy(1, 2)
    expected = free.next_flow(session(free, 7, policy))
    memory = session(tight, 7, policy)
    assert torch.equal(tight.next_flow(memory), expected)
    _, past = tight.gather(memory, turn(99).text)
    assert tight.store.nbytes == sum(kv.nbytes for kv in past) and len(tight.store) == 3
    tight.store.retain(())
    assert torch.equal(tight.next_flow(memory), expected)
    assert len(tight.store) == 3


def test_branches_share_entries_and_are_independent(model):
    policy = MemoryPolicy(1, 4)
    alone = CountingCache(model)
    expected = alone.next_flow(alone.commit(session(alone, 2, policy), turn(3)))
    cache = CountingCache(model)
    fork = session(cache, 2, policy)
    held = len(cache.store)
    cache.commit(fork, turn(4))
    right = cache.commit(fork, turn(3))
    assert torch.equal(cache.next_flow(right), expected)
    assert len(cache.store) == held + 2


@pytest.mark.slow
@pytest.mark.parametrize("history", ["stream", "refresh"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_turn_uses_rounded_kv_as_stored(model, history, dtype):
    """The turn that stores K/V uses the rounded ones, so that evicting them changes nothing."""
    policy = MemoryPolicy(1, 2, history)
    exact = CountingCache(model)
    expected = exact.next_flow(session(exact, 5, policy))
    cache = CountingCache(model)
    memory = session(cache, 5, policy, KVCacheConfig(dtype=dtype))
    flow = cache.next_flow(memory)
    _, past = cache.gather(memory, turn(99).text)
    assert {tensor.dtype for kv in past for tensor in (*kv.keys, *kv.values)} == {getattr(torch, dtype)}
    assert torch.equal(flow, expected) == (dtype == "float32")  # which the model works in
    expected_error = {"bfloat16": 0.0017, "float16": 0.0002, "float32": 0.0, "float8_e4m3fn": 0.027}[dtype]
    assert all(0.8 * expected_error <= kv.quantization_error <= 1.2 * expected_error for kv in past)
    torch.testing.assert_close(flow, expected, atol=max(0.05, 5 * expected_error), rtol=0)
    cache.store.retain(())
    assert torch.equal(cache.next_flow(memory), flow)
    cache.store.retain(list(cache.store._entries)[1:])
    assert torch.equal(cache.next_flow(memory), flow)


@pytest.mark.parametrize("device", ["auto", "gpu", "cpu"])
def test_device_does_not_change_results(model, device):
    cache = CountingCache(model)
    expected = cache.next_flow(session(cache, 5, MemoryPolicy(1, 2)))
    placed = CountingCache(model, max_device_bytes=0)
    memory = session(placed, 5, MemoryPolicy(1, 2), KVCacheConfig(device=device))
    assert torch.equal(placed.next_flow(memory), expected)


def test_kv_are_kept_on_the_configured_device(model):
    """The model runs on the CPU and calls it `meta`, a device without bytes: what is kept there shows."""
    whole = CountingCache(model).gather(start(MemoryPolicy()), turn(1).text)[1][0].nbytes
    memory, store = start(MemoryPolicy(1, 4)), KVStore()

    def device_of(config: KVCacheConfig, max_device_bytes: int | None, for_this_run: bool) -> str:
        cache = CountingCache(model, store, device="meta", max_device_bytes=max_device_bytes)
        if for_this_run:
            _, (kv,) = cache.gather(memory, turn(1).text, config)
        else:
            _, (kv,) = cache.gather(replace(memory, kv_cache=config), turn(1).text)
        assert len(store) == 1
        assert store.nbytes == kv.nbytes
        (held,) = store._entries.values()
        assert held is kv
        return kv.device.type

    for for_this_run in (False, True):
        assert device_of(KVCacheConfig("cpu"), None, for_this_run) == "cpu"
        assert device_of(KVCacheConfig("auto"), 5 * whole - 1, for_this_run) == "cpu"
        assert device_of(KVCacheConfig("auto"), 5 * whole, for_this_run) == "meta"
        assert device_of(KVCacheConfig("gpu"), 0, for_this_run) == "meta"
        store.retain(())
        assert device_of(KVCacheConfig("auto", "bfloat16"), 5 * whole - 1, for_this_run) == "meta"
        store.retain(())


def committed(policy: MemoryPolicy, **second) -> AnchorMemory:
    """Four turns that were never encoded; `second` replaces parts of turn 2."""
    memory = start(policy)
    for number in range(1, 5):
        memory = memory.commit(replace(turn(number), **second) if number == 2 else turn(number))
    return memory


FIRST_PROMPT = EditConfig(anchor_prompt="first_prompt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "asked", "identity", "policy", "second", "config", "forwards"),
    [
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {}, None, 0),
        (EDIT, EDIT, "the same model with a LoRA", MemoryPolicy(1, 2), {}, None, 5),
        (EDIT, EditConfig(temporal_stride=2), "model", MemoryPolicy(1, 2), {}, None, 5),
        (EDIT, FIRST_PROMPT, "model", MemoryPolicy(1, 2), {}, None, 5),
        (FIRST_PROMPT, EditConfig(anchor_prompt="first_token"), "model", MemoryPolicy(1, 2), {}, None, 5),
        # turn 4 sees 0, 2 and 3
        (EDIT, EditConfig(slot_mode="absolute"), "model", MemoryPolicy(1, 2), {}, None, 1),
        # turn 2 and those that saw it
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {"latent": turn(9).latent}, None, 3),
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {"text": turn(9).text}, None, 3),
        (EDIT, EDIT, "model", MemoryPolicy(1, 1), {}, None, 2),  # turns 3 and 4 saw less
        (EDIT, EDIT, "model", MemoryPolicy(1, 2, "refresh"), {}, None, 2),  # they see one another alone
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {}, KVCacheConfig(dtype="bfloat16"), 5),
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {}, KVCacheConfig(device="cpu"), 0),
    ],
    ids="nothing identity stride anchor_prompt rows slots latent text window history dtype device".split(),
)
def test_cache_keys_depend_on_all_inputs_of_an_entry(model, made, asked, identity, policy, second, config, forwards):
    """Entries of another model, text or policy are never served; all else is shared."""
    store = KVStore()
    CountingCache(model, store, made).gather(committed(MemoryPolicy(1, 2)), turn(9).text)
    other = CountingCache(model, store, asked)
    other.fingerprint = identity
    other.gather(committed(policy, **second), turn(9).text, config)
    assert other.forwards == forwards


def test_changed_policy_keeps_encoded_frames(model):
    """Another policy is for the turns to come: nothing that streamed in is encoded again."""
    cache = CountingCache(model)
    memory = session(cache, 4, MemoryPolicy(1, 2))
    made = cache.forwards
    view, _ = cache.gather(memory.with_policy(window=1), turn(9).text)
    assert view.frames == (0, 4) and cache.forwards == made


@pytest.mark.parametrize("anchor_prompt", ["first_prompt", "first_token"])
def test_the_published_anchor_prompt_is_the_first_instruction(model, anchor_prompt):
    cache = CountingCache(model, edit=EditConfig(anchor_prompt=anchor_prompt))
    seen, encode = [], cache.encode_frame
    cache.encode_frame = lambda latent, text, rows, *rest: (
        seen.append((text, rows)) or encode(latent, text, rows, *rest)
    )
    session(cache, 2, MemoryPolicy(1, 2))
    assert torch.equal(seen[0][0], turn(1).text)
    assert seen[0][1] == (1 if anchor_prompt == "first_token" else None)
    assert len(seen) == 3


def test_values_beyond_float8_are_clamped():
    kv = FrameKV((torch.tensor([1.0, 1000.0]),), (torch.tensor([-2000.0, 0.5]),)).quantized(torch.float8_e4m3fn)
    assert kv.keys[0].float().tolist() == [1.0, 448.0] and kv.values[0].float().tolist() == [-448.0, 0.5]
    assert kv.quantization_error > 0.5 and kv.quantized(torch.float32).quantization_error == kv.quantization_error
