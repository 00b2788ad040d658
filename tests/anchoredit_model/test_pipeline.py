"""Whole edits on a small random model: exact, repeatable, of the input's size, and at the same cost every turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from anchoredit_model.config import KVCacheConfig, MemoryPolicy
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import to_pil, to_tensor
from anchoredit_model.memory.session_file import load_session, save_session
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.noise import variation_seeds
from anchoredit_model.pipeline import AnchorEditPipeline

WORDS = ["make it red", "add a star", "move it left", "make it blue", "add a boat", "remove the star"]


@pytest.fixture(scope="module")
def pipeline(small_model) -> AnchorEditPipeline:
    return AnchorEditPipeline.from_pretrained(small_model)


def with_edit(pipeline: AnchorEditPipeline, **options) -> AnchorEditPipeline:
    """The same model as a checkpoint with other edit settings, and a store of its own."""
    return AnchorEditPipeline(
        TransformerBackbone(pipeline.backbone.transformer, replace(pipeline.edit, **options)),
        pipeline.vae,
        pipeline.text_encoder,
    )


def photo(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """An 8-bit image [3, height, width] of noise."""
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).float() / 255


def chain(pipeline, memory, words, **options):
    for instruction in words:
        memory = pipeline.turn(memory, instruction, **options)
    return memory


def images(pipeline, memory) -> list[torch.Tensor]:
    return [pipeline.image(memory, turn) for turn in range(len(memory))]


def same(left, right) -> bool:
    """Two sessions have the same latents, bit for bit."""
    return len(left) == len(right) and all(torch.equal(a.latent, b.latent) for a, b in zip(left.turns, right.turns))


@pytest.fixture
def forwards(pipeline, monkeypatch) -> list[int]:
    """One entry per forward of the transformer from now on: how many cached frames it saw."""
    counted = []
    run = pipeline.backbone.transformer._run

    def counting(latents, timesteps, text, views, stride, past, keep):
        counted.append(len(past or ()))
        return run(latents, timesteps, text, views, stride, past, keep)

    monkeypatch.setattr(pipeline.backbone.transformer, "_run", counting)
    return counted


# ---------------------------------------------------------------- reproducibility


def test_a_saved_model_edits_bit_for_bit_alike(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "again")
    again = AnchorEditPipeline.from_pretrained(tmp_path / "again")
    assert again.backbone.fingerprint == pipeline.backbone.fingerprint and again.edit == pipeline.edit
    left, right = (chain(each, each.start(photo()), WORDS[:3], cfg=2) for each in (pipeline, again))
    assert all(map(torch.equal, images(pipeline, left), images(again, right)))
    assert left.model == right.model
    files = {file.name for file in (tmp_path / "again").rglob("*") if file.is_file()}
    assert {file.rpartition(".")[2] for file in files} == {"safetensors", "json", "model"}  # no pickle

    narrow = AnchorEditPipeline.from_pretrained(tmp_path / "again", torch.bfloat16)
    memory = narrow.turn(narrow.start(photo()), WORDS[0])
    assert memory.model != left.model and memory.turns[1].latent.dtype == torch.float32
    assert narrow.image(memory).isfinite().all()


def test_seed_determines_the_turn(pipeline):
    start = pipeline.start(photo())
    one, again, other = (pipeline.turn(start, WORDS[0], seed) for seed in (7, 7, 8))
    assert same(one, again) and torch.equal(pipeline.image(one), pipeline.image(again))
    assert not torch.equal(pipeline.image(one), pipeline.image(other))
    third = pipeline.turn(one, WORDS[0], seed=7)  # the same seed and words have other noise in another turn
    assert not torch.equal(pipeline.image(third), pipeline.image(one))
    assert not same(one, pipeline.turn(start, WORDS[1], 7))


def test_branches_equal_chains_run_separately(pipeline, small_model):
    base = chain(pipeline, pipeline.start(photo()), WORDS[:2], seed=1)
    turns = base.turns
    left = pipeline.turn(base, "add a star", seed=1)
    right = pipeline.turn(base, "make it green", seed=1)
    left = pipeline.turn(left, "move it left", seed=1)
    assert base.turns is turns and all(a is b is c for a, b, c in zip(turns, left.turns, right.turns))
    for branch in (left, right):
        alone = AnchorEditPipeline.from_pretrained(small_model)
        words = [turn.instruction for turn in branch.turns[1:]]
        assert same(chain(alone, alone.start(photo()), words, seed=1), branch)
    back = left.rewind(2)
    assert same(pipeline.turn(back, "make it green", seed=1), right)


def test_call_is_start_and_turns(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(photo(), WORDS[:2], seed=3, num_inference_steps=2)
    memory = chain(pipeline, pipeline.start(photo()), WORDS[:2], seed=3, steps=2)
    assert same(out.memory, memory) and all(map(torch.equal, out.images, images(pipeline, memory)))
    more = pipeline(out.memory, WORDS[2], seed=3, num_inference_steps=2)
    assert same(more.memory, pipeline.turn(memory, WORDS[2], seed=3, steps=2))
    assert len(more.images) == 2 and torch.equal(more.images[0], out.images[-1])


def test_pillow_image_equals_its_tensor(pipeline):
    assert torch.equal(pipeline.start(to_pil(photo())).image, pipeline.start(to_tensor(to_pil(photo()))).image)


def test_a_negative_history_is_kept_as_in_the_published_code(pipeline):
    """The unconditional branch then sees turns as encoded under the null prompt: other results, no growing cost."""
    negative = with_edit(pipeline, negative_history=True)
    encoded = []
    encode = negative._negative_kv_cache.encode_frame
    negative._negative_kv_cache.encode_frame = lambda *arguments: encoded.append(1) or encode(*arguments)
    memory = plain = pipeline.start(photo())
    for number, words in enumerate(WORDS[:3]):
        memory = negative.turn(memory, words, steps=1, cfg=2)
        plain = pipeline.turn(plain, words, steps=1, cfg=2)
        assert len(encoded) == number + 1
    assert not same(memory, plain)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 53), (130, 67), (1, 1), (3, 4000), (97, 1)])
def test_images_have_the_inputs_size(pipeline, height, width):
    source = photo(height, width)
    memory = chain(pipeline, pipeline.start(source), WORDS[:2], steps=1)
    assert torch.equal(pipeline.image(memory, 0), source)
    for turn in (1, 2):
        image = pipeline.image(memory, turn)
        assert image.shape == source.shape and image.min() >= 0 and image.max() <= 1
    assert torch.equal(pipeline.image(memory), pipeline.image(memory, 2))


def test_resolution_can_be_chosen_at_start(pipeline):
    memory = pipeline.start(photo(32, 48), resolution=128)
    assert memory.turns[0].latent.shape == (16, 16, 16)
    memory = pipeline.turn(memory, WORDS[0], steps=1)
    assert pipeline.image(memory).shape == (3, 32, 48)


def test_source_keeps_more_than_eight_bits(pipeline):
    source = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    memory = pipeline.turn(pipeline.start(source.transpose(1, 2).contiguous().transpose(1, 2)), WORDS[0], steps=1)
    assert torch.equal(pipeline.image(memory, 0), source)


def test_pixels_outside_the_mask_are_unchanged(pipeline, monkeypatch):
    source = photo(64, 64)
    masks = [torch.zeros(1, 64, 64) for _ in range(2)]
    masks[0][:, 10:30, 21:45] = 1
    masks[1][:, 40:50, 3:11] = 0.5
    memory = pipeline.start(source)
    shown = [source]
    for mask in (masks[0], masks[0], masks[1]):
        memory = pipeline.turn(memory, WORDS[len(memory)], seed=2, mask=mask)
        shown.append(pipeline.image(memory))
        before, after = memory.turns[-2].latent, memory.turns[-1].latent
        outside = torch.nn.functional.max_pool2d(mask, 8)[0] == 0
        assert torch.equal(after[:, outside], before[:, outside])
        assert not torch.equal(after[:, ~outside], before[:, ~outside])
        pixels = mask[0] == 0
        assert torch.equal(shown[-1][:, pixels], shown[-2][:, pixels])
        assert not torch.equal(shown[-1], shown[-2])
    never = (masks[0] + masks[1])[0] == 0
    assert torch.equal(shown[3][:, never], source[:, never])

    # with the image before at hand one decode is enough, and changes nothing
    decodes = []
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda latents: decodes.append(1) or decode(latents))
    assert torch.equal(pipeline.image(memory, before=shown[2]), shown[3]) and len(decodes) == 1
    assert torch.equal(pipeline.image(memory), shown[3]) and len(decodes) == 4


def test_mask_is_kept_in_a_scaled_and_padded_image(pipeline):
    source = photo(300, 41)
    mask = torch.zeros(1, 300, 41)
    mask[:, 120, 7] = 1  # one pixel
    memory = pipeline.turn(pipeline.start(source), WORDS[0], mask=mask)
    image = pipeline.image(memory)
    assert torch.equal(image[:, mask[0] == 0], source[:, mask[0] == 0])
    assert not torch.equal(memory.turns[1].latent, memory.turns[0].latent)


def test_unmasked_turn_after_a_masked_one_may_change_everything(pipeline):
    mask = torch.zeros(1, 64, 64)
    mask[:, :8] = 1
    memory = pipeline.turn(pipeline.start(photo()), WORDS[0], mask=mask)
    memory = pipeline.turn(memory, WORDS[1])
    assert torch.equal(pipeline.image(memory), pipeline.vae.decode(memory.turns[2].latent[None])[0])


# ---------------------------------------------------------------- variations


@pytest.mark.parametrize("options", [{}, {"cfg": 2.0}, {"sampler": "euler", "steps": 3}])
def test_variations_equal_turns_with_their_seeds(pipeline, forwards, options):
    """One batch, from one memory, whose keys and values and text have a batch of one."""
    base = chain(pipeline, pipeline.start(photo()), WORDS[:2], seed=5)
    pipeline.kv_cache.gather(base, base.turns[0].text)
    forwards.clear()
    batch = pipeline.variations(base, WORDS[2], 5, 3, **options)
    assert len(forwards) == options.get("steps", 4) * (2 if "cfg" in options else 1)  # not once more to commit
    apart = pipeline.variations(base, WORDS[2], 5, 3, batched=False, **options)
    seeds = [candidate.turns[-1].seed for candidate in batch]
    assert seeds == variation_seeds(5, 3) and seeds[0] == 5
    for each, alone, seed in zip(batch, apart, seeds, strict=True):
        turn = pipeline.turn(base, WORDS[2], seed, **options)
        torch.testing.assert_close(each.turns[-1].latent, turn.turns[-1].latent, atol=1e-5, rtol=0)
        assert same(alone, turn) and each.turns[:-1] == base.turns and each.model == turn.model
        assert each.turns[-1].settings == turn.turns[-1].settings
        # and one goes on from it as from the turn
        onward = [pipeline.turn(memory, WORDS[3], 5).turns[-1].latent for memory in (each, turn)]
        torch.testing.assert_close(*onward, atol=1e-4, rtol=0)
    assert not any(same(one, other) for one, other in combinations(batch, 2))


def test_masked_variations_keep_pixels_outside_the_mask(pipeline):
    source, mask = photo(40, 56), torch.zeros(1, 40, 56)
    mask[:, 9:21, 30:50] = 1
    start, shown = pipeline.start(source), []
    for candidate in pipeline.variations(start, WORDS[0], count=3, mask=mask, on_step=lambda *step: shown.append(step)):
        assert candidate.turns[-1].mask is mask
        image = pipeline.image(candidate)
        assert torch.equal(image[:, mask[0] == 0], source[:, mask[0] == 0]) and not torch.equal(image, source)
    assert [step for step, *_ in shown] == [1, 2, 3, 4] and shown[0][2].shape == start.turns[0].latent.shape


# ---------------------------------------------------------------- settings


def test_empty_instruction_is_a_null_edit(pipeline):
    start = pipeline.start(photo())
    empty, blank = (pipeline.turn(start, words, seed=4) for words in ("", " \n\t "))
    assert same(empty, blank) and empty.turns[1].instruction == blank.turns[1].instruction == ""
    assert torch.equal(empty.turns[1].text, start.turns[0].text)
    guided = pipeline.turn(start, "", seed=4, cfg=3)  # nothing to guide towards
    torch.testing.assert_close(guided.turns[1].latent, empty.turns[1].latent)


def test_steps_and_cfg_override_the_checkpoint(pipeline, forwards):
    start = pipeline.start(photo())
    pipeline.turn(start, WORDS[0])  # encodes the anchor
    made = {}
    for name, options, times, calls in (
        ("default", {}, [1000, 750, 500, 250], 4),
        ("one", {"cfg": 1.0}, [1000, 750, 500, 250], 4),
        ("two steps", {"steps": 2}, [1000, 500], 2),
        ("guided", {"cfg": 2}, [1000, 750, 500, 250], 8),
        ("reversed", {"cfg": -1}, [1000, 750, 500, 250], 8),
    ):
        # evicts the K/V of the turn before, so that every commit is one forward
        pipeline.kv_cache.gather(start, start.turns[0].text)
        forwards.clear()
        done = []
        made[name] = pipeline.turn(
            start, WORDS[0], on_step=lambda step, total, x0, done=done: done.append(step), **options
        )
        assert made[name].turns[1].settings["timesteps"] == times and done == list(range(1, len(times) + 1))
        assert len(forwards) == calls + 1
    assert same(made["default"], made["one"])
    latents = [made[name].turns[1].latent for name in ("default", "two steps", "guided", "reversed")]
    assert not any(torch.equal(a, b) for i, a in enumerate(latents) for b in latents[:i])


def test_an_undistilled_checkpoint_uses_euler(pipeline, forwards):
    euler = with_edit(pipeline, sampler="euler", num_steps=5, shift=3.0, cfg=2.0)
    start = euler.start(photo())
    memory = euler.turn(start, WORDS[0], seed=1)
    assert memory.turns[1].settings == {"sampler": "euler", "cfg": 2.0, "num_steps": 5}
    assert len(forwards) == 1 + 2 * 5 + 1
    assert same(memory, euler.turn(start, WORDS[0], seed=1))
    assert not same(memory, pipeline.turn(start, WORDS[0], seed=1, cfg=2))
    fewer = euler.turn(start, WORDS[0], seed=1, steps=3)
    assert fewer.turns[1].settings["num_steps"] == 3 and not same(fewer, memory)


@pytest.mark.parametrize("options", [{"anchor_prompt": "first_prompt"}, {"anchor_prompt": "first_token"}])
def test_foreign_checkpoints_encode_the_anchor_with_the_first_prompt(pipeline, options):
    foreign = with_edit(pipeline, **options)
    memory = chain(foreign, foreign.start(photo()), WORDS[:2])
    ours = chain(pipeline, pipeline.start(photo()), WORDS[:2])
    assert not torch.equal(memory.turns[1].latent, ours.turns[1].latent)


def test_slot_modes_differ_once_the_window_slides(pipeline):
    absolute = with_edit(pipeline, slot_mode="absolute")
    policy = MemoryPolicy(anchor_frames=1, window=2)
    left, right = (chain(each, each.start(photo(), policy), WORDS[:5]) for each in (pipeline, absolute))
    equal = [torch.equal(a.latent, b.latent) for a, b in zip(left.turns, right.turns)]
    assert equal == [True, True, True, True, False, False]  # turn 3 still sees 0 1 2


def test_changed_policy_makes_a_branch(pipeline):
    base = chain(pipeline, pipeline.start(photo(), MemoryPolicy(1, 3)), WORDS[:3])
    wide, narrow, again = (pipeline.turn(memory, WORDS[3]) for memory in (base, base.with_policy(window=1), base))
    assert same(wide, again) and not same(wide, narrow)
    assert base.policy == wide.policy == MemoryPolicy(1, 3) and narrow.policy == MemoryPolicy(1, 1)
    refreshed = base.with_policy(history="refresh")
    assert same(pipeline.turn(refreshed, WORDS[3]), wide)  # until the window slides both histories agree
    slid = chain(pipeline, wide, WORDS[4:])
    assert not same(chain(pipeline, wide.with_policy(history="refresh"), WORDS[4:]), slid)


def three_turns(pipeline, device: str = "auto", dtype: str = "auto"):
    """Three turns whose K/V lie there and have that dtype."""
    config = KVCacheConfig(device, dtype)
    return chain(pipeline, pipeline.start(photo(), MemoryPolicy(1, 2), kv_cache=config), WORDS[:3])


def test_device_and_dtype_of_the_kv(pipeline, small_model):
    narrow = AnchorEditPipeline.from_pretrained(small_model, torch.bfloat16)
    exact = three_turns(narrow)
    for options in [("cpu", "auto"), ("gpu", "bfloat16"), ("cpu", "float32"), ("auto", "float16")]:
        assert same(three_turns(narrow, *options), exact)  # all of them hold what bfloat16 does

    rounded = three_turns(pipeline, "cpu", "bfloat16")
    assert not same(rounded, three_turns(pipeline, "cpu"))
    pipeline.store.retain(())
    assert same(pipeline.turn(rounded.rewind(2), WORDS[2]), rounded)


@pytest.mark.parametrize("cfg", [1, 2])
def test_kv_cache_settings_of_one_run_are_not_kept(pipeline, tmp_path, cfg):
    """As after running out of memory: neither the session nor its file nor the next turn knows of them."""
    memory = three_turns(pipeline)
    plain = pipeline.turn(memory, WORDS[3], cfg=cfg)
    seen = []
    commit = pipeline.kv_cache.commit

    def watched(memory, turn, config=None):
        after = commit(memory, turn, config)
        seen.extend(kv.keys[0].dtype for kv in pipeline.store._entries.values())
        return after

    pipeline.kv_cache.commit = watched
    try:
        moved = pipeline.turn(memory, WORDS[3], cfg=cfg, kv_cache=KVCacheConfig("cpu"))
        assert set(seen) == {torch.float32}
        seen.clear()
        rounded = pipeline.turn(memory, WORDS[3], cfg=cfg, kv_cache=KVCacheConfig("cpu", "bfloat16"))
        assert set(seen) == {torch.bfloat16}
    finally:
        del pipeline.kv_cache.commit
    assert memory.kv_cache == moved.kv_cache == rounded.kv_cache == KVCacheConfig()
    assert same(moved, plain) and not same(rounded, plain)  # where K/V lie changes no number, their dtype does

    for name, session in (("plain", plain), ("moved", moved)):
        save_session(session, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "moved.safetensors").read_bytes()
    save_session(rounded, tmp_path / "rounded.safetensors")
    loaded = load_session(tmp_path / "rounded.safetensors")
    assert loaded.kv_cache == KVCacheConfig()
    assert same(pipeline.turn(loaded, WORDS[4]), pipeline.turn(rounded, WORDS[4]))
    assert {kv.keys[0].dtype for kv in pipeline.store._entries.values()} == {torch.float32}


def test_kv_cache_settings_of_variations_are_not_kept(pipeline):
    memory = three_turns(pipeline)
    plain = pipeline.variations(memory, WORDS[3], count=2)
    moved = pipeline.variations(memory, WORDS[3], count=2, kv_cache=KVCacheConfig("cpu"))
    assert all(map(same, plain, moved)) and {each.kv_cache for each in moved} == {KVCacheConfig()}


def test_default_policy_is_the_trained_one(pipeline):
    assert pipeline.start(photo()).policy == pipeline.default_policy == MemoryPolicy(1, 2)
    assert with_edit(pipeline, max_turns=2).default_policy == MemoryPolicy(1, 1)


# ---------------------------------------------------------------- memory and cost


def test_cost_per_turn_is_constant_and_visible_frames_are_kept(small_model, monkeypatch):
    pipeline = AnchorEditPipeline.from_pretrained(small_model)
    memory = pipeline.start(photo(), MemoryPolicy(anchor_frames=1, window=2))
    calls, run = [], pipeline.backbone.transformer._run
    monkeypatch.setattr(
        pipeline.backbone.transformer, "_run", lambda *args, **kwargs: calls.append(1) or run(*args, **kwargs)
    )
    per_turn, frame = [], None
    for words in WORDS:
        calls.clear()
        memory = pipeline.turn(memory, words)
        per_turn.append(len(calls))
        seen = memory.view().frames
        assert len(seen) == min(len(memory), 3) and len(pipeline.store) == len(seen)
        frame = frame or pipeline.store.nbytes // len(seen)
        assert pipeline.store.nbytes == len(seen) * frame
        calls.clear()
        _, past = pipeline.kv_cache.gather(memory, memory.turns[0].text)
        assert not calls and len(past) == len(seen)  # just the K/V that the next turn sees
    assert per_turn == [6, 5, 5, 5, 5, 5]  # the anchor once, then four steps and a commit


def test_refreshed_history_adds_at_most_one_window_of_forwards(pipeline, forwards):
    memory = pipeline.start(photo(seed=1), MemoryPolicy(anchor_frames=1, window=2, history="refresh"))
    per_turn = []
    for words in WORDS:
        forwards.clear()
        memory = pipeline.turn(memory, words)
        per_turn.append(len(forwards))
    assert per_turn == [5, 5, 5, 6, 6, 6]
    assert len(pipeline.store) == 3


def test_a_long_session_stays_inside_trained_positions(pipeline, forwards):
    memory = chain(pipeline, pipeline.start(photo()), WORDS * 3, steps=1)
    assert memory.last == 18 and max(forwards) == 3


# ---------------------------------------------------------------- mistakes


def test_sessions_of_other_models_are_refused(pipeline, small_model):
    memory = pipeline.start(photo())
    stranger = AnchorEditPipeline.from_pretrained(small_model)
    stranger.vae.model.register_to_config(latents_mean=[0.5] * 16)
    with pytest.raises(AnchorEditError, match="another VAE .*[.] Use the model it was started with"):
        stranger.turn(memory, WORDS[0])
    (anchor,) = memory.turns
    wide = replace(memory, turns=(replace(anchor, text=torch.zeros(1, 4096)),))
    with pytest.raises(AnchorEditError, match="as wide as the model's 32, got 4096"):
        pipeline.turn(wide, WORDS[0])


def test_non_finite_output_is_an_error(pipeline):
    memory = pipeline.start(photo())
    with pytest.raises(AnchorEditError, match=r"turn 1 came out as NaN or infinite \(cfg 1e\+38\). Lower cfg"):
        pipeline.turn(memory, WORDS[0], cfg=1e38)
    broken = replace(memory, turns=(replace(memory.turns[0], latent=memory.turns[0].latent * float("nan")),))
    with pytest.raises(AnchorEditError, match="turn 1 came out as NaN"):
        pipeline.turn(broken, WORDS[0])


def test_mistakes_are_named(pipeline, tmp_path):
    memory = pipeline.turn(pipeline.start(photo(20, 30)), WORDS[0], steps=1)
    for said, options in (
        ("mask is 20x30, the image 30x20", {"mask": torch.ones(1, 30, 20)}),
        ("mask is black everywhere", {"mask": torch.zeros(1, 20, 30)}),
        ("cfg must be a finite number, got nan", {"cfg": float("nan")}),
        ("cfg must be a finite number, got -inf", {"cfg": float("-inf")}),
        ("steps must be 1 to 1000, got 0", {"steps": 0}),
    ):
        with pytest.raises(AnchorEditError, match=said):
            pipeline.turn(memory, WORDS[0], **options)
    with pytest.raises(AnchorEditError, match=r"instruction 'a\\udcff' is not valid text"):
        pipeline.turn(memory, "a\udcff")
    for turn in (2, -1):
        with pytest.raises(AnchorEditError, match=f"turn must be 0 to 1, got {turn}"):
            pipeline.image(memory, turn)
    with pytest.raises(AnchorEditError, match=r"\[4, 8, 8\]"):
        pipeline.start(torch.zeros(4, 8, 8))
    with pytest.raises(AnchorEditError, match="model '.*nowhere' does not exist"):
        AnchorEditPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(AnchorEditError, match="model '~nobody-here/model' does not exist"):
        AnchorEditPipeline.from_pretrained("~nobody-here/model")
