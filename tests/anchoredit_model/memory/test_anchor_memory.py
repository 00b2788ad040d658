"""The memory as a value, and its keys and values: streamed, refreshed, lost and made again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
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


class CountingReader(KVCacheManager):
    """A reader over a real model that counts its forwards."""

    def __init__(self, model, store=None, edit=EDIT, **place):
        self.model, self.forwards = model, 0
        super().__init__(self.read, "model", edit, KVStore() if store is None else store, **place)

    def read(self, latent, text, rows, view, blocks):
        self.forwards += 1
        return self.model.encode_frame(
            latent[None, :, None], text[None, None], view, self.edit.temporal_stride, blocks
        )[0]

    def next_flow(self, memory):
        """The flow of a fixed noisy frame as the next turn would see it."""
        view, blocks = self.visible(memory, turn(99).text)
        noisy, time = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(7)), torch.tensor([[750.0]])
        with torch.no_grad():
            return self.model(noisy, time, turn(99).text[None, None], (view,), self.edit.temporal_stride, blocks)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CausalWanTransformer(SIZES).eval()


def turn(number: int) -> Turn:
    generator = torch.Generator().manual_seed(number)
    return Turn(
        torch.randn(16, 4, 6, generator=generator), f"edit {number}", torch.randn(3, 24, generator=generator), 0
    )


def start(policy: MemoryPolicy) -> AnchorMemory:
    anchor = turn(0)
    return AnchorMemory.start(anchor.latent, anchor.text[:1], torch.zeros(3, 32, 48), fit_into(32, 48, 32, 48), policy)


def session(reader: KVCacheManager, turns: int, policy: MemoryPolicy) -> AnchorMemory:
    memory = start(policy)
    for number in range(1, turns + 1):
        reader.visible(memory, turn(number).text)
        memory = reader.commit(memory, turn(number))
    return memory


def test_memories_share_turns_and_never_change():
    one = start(MemoryPolicy()).commit(turn(1))
    left, right = one.commit(turn(2)), one.commit(turn(3))
    assert len(one) == 2 and len(left) == len(right) == 3
    assert all(a is b is c for a, b, c in zip(one.turns, left.turns, right.turns))
    assert left.rewind(1).turns == one.turns and left.rewind(0).last == 0
    assert left.with_policy(window=1).turns is left.turns and left.with_policy(window=1).policy.window == 1
    with pytest.raises(AnchorEditError, match="choose 0 to 2"):
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
    reader = CountingReader(model)
    memory = session(reader, 6, MemoryPolicy(1, 2, "refresh"))
    frames = [memory.turns[number] for number in memory.view().frames] + [turn(99)]
    noisy = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(7))
    latents = torch.cat([*(frame.latent[None, :, None] for frame in frames[:-1]), noisy], dim=2)
    times = torch.tensor([[0.0] * (len(frames) - 1) + [750.0]])
    rows = max(len(frame.text) for frame in frames)
    text = torch.stack([torch.nn.functional.pad(f.text, (0, 0, 0, rows - len(f.text))) for f in frames])[None]
    with torch.no_grad():
        whole = model(latents, times, text)
    torch.testing.assert_close(reader.next_flow(memory), whole[:, :, -1:], atol=1e-5, rtol=0)


def test_refresh_and_stream_differ_only_once_the_window_slides(model):
    flows = {}
    for history in ("stream", "refresh"):
        for turns in (2, 5):
            reader = CountingReader(model)
            flows[history, turns] = reader.next_flow(session(reader, turns, MemoryPolicy(1, 2, history)))
    torch.testing.assert_close(flows["stream", 2], flows["refresh", 2], atol=1e-5, rtol=0)
    assert (flows["stream", 5] - flows["refresh", 5]).abs().max() > 1e-4


@pytest.mark.parametrize("history", ["stream", "refresh"])
def test_lost_blocks_come_back_bit_for_bit(model, history):
    reader = CountingReader(model)
    memory = session(reader, 6, MemoryPolicy(1, 2, history))
    undisturbed = reader.next_flow(memory)
    reader.store.retain(())
    assert torch.equal(reader.next_flow(memory), undisturbed)


def test_a_lost_block_costs_one_forward_per_lost_turn(model):
    reader = CountingReader(model)
    memory = session(reader, 8, MemoryPolicy(1, 2))
    _, blocks = reader.visible(memory, turn(9).text)
    assert reader.forwards == 9  # every frame was read once
    keys = list(reader.store._blocks)
    reader.store.retain(keys[:-1])  # the newest turn is lost
    reader.visible(memory, turn(9).text)
    assert reader.forwards == 10
    reader.store.retain(())
    reader.visible(memory, turn(9).text)
    assert reader.forwards == 19


def test_reading_again_is_told_and_can_be_stopped(model):
    class Stop(Exception):
        pass

    def stop(done, total):
        told.append((done, total))
        if done == 2:
            raise Stop

    reader, told = CountingReader(model), []
    memory = session(reader, 5, MemoryPolicy(1, 2))
    undisturbed = reader.next_flow(memory)
    again = CountingReader(model, on_read=stop)
    with pytest.raises(Stop):
        again.next_flow(memory)
    assert told == [(0, 6), (1, 6), (2, 6)]
    again.on_read, told = (lambda *step: told.append(step)), []
    assert torch.equal(again.next_flow(memory), undisturbed)
    assert told == [(done, 4) for done in range(5)]  # what was read before the stop is kept
    told.clear()
    again.next_flow(memory)
    assert told == []


def test_a_budget_keeps_what_is_visible_and_changes_no_number(model):
    free, tight = CountingReader(model), CountingReader(model, KVStore(budget=0))
    policy = MemoryPolicy(1, 2)
    expected = free.next_flow(session(free, 7, policy))
    memory = session(tight, 7, policy)
    assert torch.equal(tight.next_flow(memory), expected)
    _, blocks = tight.visible(memory, turn(99).text)
    assert tight.store.nbytes == sum(block.nbytes for block in blocks) and len(tight.store) == 3
    tight.store.retain(())
    assert torch.equal(tight.next_flow(memory), expected)
    assert len(tight.store) == 3


def test_branches_share_blocks_and_do_not_disturb_each_other(model):
    policy = MemoryPolicy(1, 4)
    alone = CountingReader(model)
    expected = alone.next_flow(alone.commit(session(alone, 2, policy), turn(3)))
    reader = CountingReader(model)
    fork = session(reader, 2, policy)
    held = len(reader.store)
    reader.commit(fork, turn(4))
    right = reader.commit(fork, turn(3))
    assert torch.equal(reader.next_flow(right), expected)
    assert len(reader.store) == held + 2


@pytest.mark.parametrize("history", ["stream", "refresh"])
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_rounded_blocks_are_read_as_they_were_written(model, history, kv_dtype):
    """The turn that writes a block reads the rounded one, so that losing it changes nothing."""
    exact = CountingReader(model)
    expected = exact.next_flow(session(exact, 5, MemoryPolicy(1, 2, history)))
    reader = CountingReader(model)
    memory = session(reader, 5, MemoryPolicy(1, 2, history, kv_dtype=kv_dtype))
    flow = reader.next_flow(memory)
    _, blocks = reader.visible(memory, turn(99).text)
    assert {tensor.dtype for block in blocks for tensor in (*block.keys, *block.values)} == {getattr(torch, kv_dtype)}
    assert torch.equal(flow, expected) == (kv_dtype == "float32")  # which the model works in
    expected_error = {"bfloat16": 0.0017, "float16": 0.0002, "float32": 0.0, "float8_e4m3fn": 0.027}[kv_dtype]
    assert all(0.8 * expected_error <= block.rounding <= 1.2 * expected_error for block in blocks)
    torch.testing.assert_close(flow, expected, atol=max(0.05, 5 * expected_error), rtol=0)
    reader.store.retain(())
    assert torch.equal(reader.next_flow(memory), flow)
    reader.store.retain(list(reader.store._blocks)[1:])
    assert torch.equal(reader.next_flow(memory), flow)


@pytest.mark.parametrize("place", ["auto", "vram", "ram"])
def test_places_change_no_number(model, place):
    reader = CountingReader(model)
    expected = reader.next_flow(session(reader, 5, MemoryPolicy(1, 2)))
    placed = CountingReader(model, share=0)
    assert torch.equal(placed.next_flow(session(placed, 5, MemoryPolicy(1, 2, place=place))), expected)


def test_a_block_lies_where_the_policy_says(model):
    """The model runs on the CPU and calls it `meta`, a device without bytes: what is kept there shows."""
    whole = CountingReader(model).visible(start(MemoryPolicy()), turn(1).text)[1][0].nbytes
    memory, store = start(MemoryPolicy(1, 4)), KVStore()

    def lies(place: str, share: int | None, **options) -> str:
        reader = CountingReader(model, store, device="meta", share=share)
        _, (block,) = reader.visible(memory.with_policy(place=place, **options), turn(1).text)
        assert len(store) == 1
        assert store.nbytes == block.nbytes
        (held,) = store._blocks.values()
        assert held is block
        return block.device.type

    assert lies("ram", None) == "cpu"
    assert lies("auto", 5 * whole - 1) == "cpu"
    assert lies("auto", 5 * whole) == "meta"
    assert lies("vram", 0) == "meta"
    store.retain(())
    assert lies("auto", 5 * whole - 1, kv_dtype="bfloat16") == "meta"


def committed(policy: MemoryPolicy, **second) -> AnchorMemory:
    """Four turns that nobody has read; `second` replaces parts of turn 2."""
    memory = start(policy)
    for number in range(1, 5):
        memory = memory.commit(replace(turn(number), **second) if number == 2 else turn(number))
    return memory


FIRST_PROMPT = EditConfig(anchor_prompt="first_prompt")


@pytest.mark.parametrize(
    ("made", "asked", "identity", "policy", "second", "reads"),
    [
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {}, 0),
        (EDIT, EDIT, "the same model with a LoRA", MemoryPolicy(1, 2), {}, 5),
        (EDIT, EditConfig(temporal_stride=2), "model", MemoryPolicy(1, 2), {}, 5),
        (EDIT, FIRST_PROMPT, "model", MemoryPolicy(1, 2), {}, 5),
        (FIRST_PROMPT, EditConfig(anchor_prompt="first_token"), "model", MemoryPolicy(1, 2), {}, 5),
        (EDIT, EditConfig(slot_mode="absolute"), "model", MemoryPolicy(1, 2), {}, 1),  # turn 4 sees 0, 2 and 3
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {"latent": turn(9).latent}, 3),  # turn 2 and those that saw it
        (EDIT, EDIT, "model", MemoryPolicy(1, 2), {"text": turn(9).text}, 3),
        (EDIT, EDIT, "model", MemoryPolicy(1, 1), {}, 2),  # turns 3 and 4 saw less
        (EDIT, EDIT, "model", MemoryPolicy(1, 2, "refresh"), {}, 2),  # they see one another alone
        (EDIT, EDIT, "model", MemoryPolicy(1, 2, kv_dtype="bfloat16"), {}, 5),
        (EDIT, EDIT, "model", MemoryPolicy(1, 2, place="ram"), {}, 0),
    ],
    ids="nothing identity stride anchor_text rows slots latent text window history dtype place".split(),
)
def test_keys_depend_on_everything_a_block_was_made_of(model, made, asked, identity, policy, second, reads):
    """What another model, text or policy would make otherwise is never served; all else is shared."""
    store = KVStore()
    CountingReader(model, store, made).visible(committed(MemoryPolicy(1, 2)), turn(9).text)
    other = CountingReader(model, store, asked)
    other.identity = identity
    other.visible(committed(policy, **second), turn(9).text)
    assert other.forwards == reads


def test_a_fork_keeps_what_its_turns_have_seen(model):
    """Another policy is for the turns to come: nothing that streamed in is read again."""
    reader = CountingReader(model)
    memory = session(reader, 4, MemoryPolicy(1, 2))
    made = reader.forwards
    view, _ = reader.visible(memory.with_policy(window=1), turn(9).text)
    assert view.frames == (0, 4) and reader.forwards == made


@pytest.mark.parametrize("anchor_text", ["first_prompt", "first_token"])
def test_published_anchor_text_reads_the_source_with_the_first_prompt(model, anchor_text):
    reader = CountingReader(model, edit=EditConfig(anchor_prompt=anchor_text))
    seen = []
    read = reader.read_frame
    reader.read_frame = lambda latent, text, rows, *rest: seen.append((text, rows)) or read(latent, text, rows, *rest)
    session(reader, 2, MemoryPolicy(1, 2))
    assert torch.equal(seen[0][0], turn(1).text)
    assert seen[0][1] == (1 if anchor_text == "first_token" else None)
    assert len(seen) == 3


def test_what_is_too_large_for_float8_is_cut_off():
    block = FrameKV((torch.tensor([1.0, 1000.0]),), (torch.tensor([-2000.0, 0.5]),)).rounded(torch.float8_e4m3fn)
    assert block.keys[0].float().tolist() == [1.0, 448.0] and block.values[0].float().tolist() == [-448.0, 0.5]
    assert block.rounding > 0.5 and block.rounded(torch.float32).rounding == block.rounding
