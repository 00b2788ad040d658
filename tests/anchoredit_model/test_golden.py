"""Our mathematics against numbers that the published research code computed, one test per file of inference.

`pytest tests -k golden --golden FOLDER` runs any folder in the same layout: other head sizes, shifts, guidance.
The published habits that ours differ from on purpose (frame 0's text, absolute slots, noise levels looked up on
a grid) are switched on here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anchoredit_model.checkpoint.keymap import to_wan_name
from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.geometry import Geometry, buckets, nearest_bucket
from anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from anchoredit_model.memory.kv_cache import KVCacheManager
from anchoredit_model.memory.kv_store import KVStore
from anchoredit_model.memory.visibility import bidirectional_views, frame_view, sequence_views
from anchoredit_model.networks.rope import rotate, temporal_tables
from anchoredit_model.networks.transformer import CausalWanTransformer
from anchoredit_model.samplers import SAMPLERS, euler, guided, nearest_sigma, renoise, shifted_sigmas

FORWARD = 2e-5  # absolute, one forward in float32
ROLLOUT = 1e-4  # absolute, after six turns


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        files = [path for path in files if not path.name.startswith("f_")]  # tests/train/stages has them
        metafunc.parametrize("golden_file", files, ids=[path.name for path in files])


def test_golden(golden_file: Path):
    checks = {
        "a": check_model,
        "b": check_sequence_forward,
        "c": check_cached_turns,
        "d": check_rollout,
        "e": check_scheduler,
        "g": check_sequence_against_cache,
        "h": check_against_diffusers,
    }
    if golden_file.name == "buckets.json":
        check_buckets(golden_file)
    elif golden_file.name.startswith("keymap"):
        check_keymap(golden_file)
    else:
        checks[golden_file.name[0]](golden_file)


@pytest.mark.parametrize("name", ["d_rollout4_A_shift1_cfg1", "d_multistep5_A_shift8_cfg1"])
def test_golden_turns_without_guidance_need_no_negative_prompt(name, tmp_path):
    source = Path(__file__).parents[1] / "golden"
    for path in source.glob("a_modelA_state*.safetensors"):
        shutil.copyfile(path, tmp_path / path.name)
    data, facts = load_file(source / f"{name}.safetensors"), metadata(source / f"{name}.safetensors")
    save_file({key: data[key] for key in data if not key.startswith("neg_")}, tmp_path / f"{name}.safetensors", facts)
    check_rollout(tmp_path / f"{name}.safetensors")

    facts["guidance"] = "3.0"  # guidance needs the negative prompt: a missing one is an error, not zeros
    save_file({key: data[key] for key in data if not key.startswith("neg_")}, tmp_path / f"{name}.safetensors", facts)
    with pytest.raises(KeyError, match="neg_valid"):
        check_rollout(tmp_path / f"{name}.safetensors")


# ---------------------------------------------------------------- files and models


def metadata(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The state dict of model A, B, ..., whole or in parts."""
    files = sorted(folder.glob(f"a_model{name}_state*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def model_name(path: Path) -> str | None:
    """The model that a file belongs to: its letter stands in the metadata or in the file's name."""
    folder = path.parent
    names = {re.match(r"a_model([^_]+)_state", file.name)[1] for file in folder.glob("a_model*_state*.safetensors")}
    parts = path.stem.replace("a_model", "a_").split("_")[1:]
    return metadata(path).get("model") or next((part for part in parts if part in names), None)


def model_of(path: Path) -> CausalWanTransformer:
    """The model that a file of numbers was computed with; any file of that model may say its sizes."""
    name = model_name(path)
    files = [path, *sorted(path.parent.glob("*.safetensors"))]
    config = next(
        json.loads(metadata(file)["config"])
        for file in files
        if "config" in metadata(file) and model_name(file) == name
    )
    sizes = {
        key: config[key] for key in ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "text_len")
    }
    model = CausalWanTransformer(TransformerConfig(**sizes, eps=config["eps"]))
    model.load_state_dict(weights(path.parent, name), strict=True)
    return model.eval()


def batch_rows(data: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """A file of turns, batch row by batch row, each as a batch of one.

    Latents are [..., B, F, C, h, w], re-noising draws [..., B, C, h, w], caches [..., B, N, heads, d]; prompts serve
    all rows unless they are [B, turns, T, E], or [B, T, E] for the negative one.
    """
    one_for_all = {"prompt_valid": 3, "neg_valid": 2}

    def part(name: str, tensor: torch.Tensor, row: int) -> torch.Tensor:
        if name in one_for_all:
            return tensor if tensor.ndim == one_for_all[name] else tensor[row]
        if name.startswith(("cache", "renoise")):
            return tensor.narrow(-4, row, 1)
        return tensor.narrow(-5, row, 1) if tensor.ndim >= 5 else tensor

    for row in range(len(data["first"])):
        yield {name: part(name, tensor, row) for name, tensor in data.items()}


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = FORWARD) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def published_sigma(time: float, shift: float) -> float:
    return nearest_sigma(torch.tensor([float(time)]), shifted_sigmas(1000, shift)[:-1]).item()


# ---------------------------------------------------------------- checks


def check_model(path: Path):
    if path.suffix == ".json":
        name = re.match(r"a_model([^_]+)_keys", path.name)[1]
        shapes = {key: list(tensor.shape) for key, tensor in weights(path.parent, name).items()}
        assert json.loads(path.read_text()) == shapes
        return
    model_of(path)  # loads strictly


@torch.no_grad()
def check_sequence_forward(path: Path):
    model, data = model_of(path), load_file(path)
    x, t, prompts = data["x"], data["t"], data["prompt_valid"]
    frames, length = x.shape[2], model.config.text_len
    # frame 0 sees the first row of prompt 0 and nothing else, frame i all of prompt i - 1
    text = torch.cat([prompts[:, :1], prompts], dim=1)
    lengths = torch.tensor([1] + [length] * (frames - 1))
    context = model.embed_text(text, lengths)
    for stride in (1, 4):
        close(model(x, t, context, stride=stride), data[f"flow_stride{stride}_causal"])
        close(model(x, t, context, bidirectional_views(frames), stride), data[f"flow_stride{stride}_bidir"])
    for slots in ("absolute", "bounded"):
        windowed = sequence_views(frames, MemoryPolicy(anchor_frames=0, window=1), slots)
        close(model(x, t, context, windowed), data["flow_stride4_causal_local2_sink1ignored"])

    past = [torch.cat([prompts[:, n] for n in range(frame)], dim=1) for frame in range(1, frames)]
    rows = max(part.shape[1] for part in past)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, rows - part.shape[1])) for part in [prompts[:, 0], *past]]
    lengths = torch.tensor([1] + [length * frame for frame in range(1, frames)])
    context = model.embed_text(torch.stack(padded, dim=1), lengths)
    close(model(x, t, context), data["flow_stride4_causal_allpastprompts"])


@torch.no_grad()
def check_cached_turns(path: Path):
    model, facts = model_of(path), metadata(path)
    for data in batch_rows(load_file(path)):
        check_cached_row(model, data, facts)


def check_cached_row(model: CausalWanTransformer, data: dict[str, torch.Tensor], facts: dict[str, str]):
    stride, shift = int(facts["temporal_rope_stride"]), float(facts["shift"])
    window, sink = int(facts["local_attn_size"]), int(facts["sink_size"])
    turns = len(data["clean"])
    policy = MemoryPolicy(0, turns + 1) if window < 0 else MemoryPolicy(sink, window - sink - 1)
    texts = data["prompt_valid"]

    def latent(tensor):  # [B, F, C, h, w] -> [B, C, F, h, w]
        return tensor.transpose(1, 2)

    def check(name, flow, noisy, time, *index):
        close(flow, latent(data[f"{name}flow" if name else "flow"][index]))
        x0 = noisy - published_sigma(time, shift) * flow
        close(x0, latent(data[f"{name}x0" if name else "x0"][index]))

    blocks = []
    first = latent(data["first"])
    block, flow = model.encode_frame(first, texts[None, None, 0], stride=stride)
    check("prefill_", flow, first, 0.0, ...)
    blocks.append(block)
    for turn in range(turns):
        context = model.embed_text(texts[None, None, turn])
        view = frame_view(turn + 1, policy, "absolute")
        seen = tuple(blocks[frame] for frame in view.frames)
        for step, time in enumerate(data["steps"].tolist()):
            noisy = latent(data["noisy"][turn, step])
            flow = model(noisy, torch.full((1, 1), time), context, (view,), stride, seen)
            check("", flow, noisy, time, turn, step)
        clean = latent(data["clean"][turn])
        block, flow = model.encode_frame(clean, context, view, stride, seen)
        check("writeback_", flow, clean, 0.0, turn)
        blocks.append(block)

    def turned(layer, frames):
        head_dim = model.config.head_dim
        keys = []
        for frame in frames:
            cos, sin = temporal_tables(head_dim, torch.tensor([frame * stride]))
            keys.append(rotate(blocks[frame].keys[layer], cos[0], sin[0]))
        return torch.cat(keys, dim=1), torch.cat([blocks[frame].values[layer] for frame in frames], dim=1)

    if window < 0:
        for layer in range(model.config.num_layers):
            keys, values = turned(layer, range(turns + 1))
            close(keys, data[f"cache_k_layer{layer}_final"])
            close(values, data[f"cache_v_layer{layer}_final"])
    else:  # the sink, then the newest frames that still fit
        for turn in range(window - 2, turns):
            frames = [*range(sink), *range(turn + 2 - (window - sink), turn + 2)]
            keys, values = turned(model.config.num_layers - 1, frames)
            close(keys, data["cache_k_last_layer_after_turn"][turn])
            close(values, data["cache_v_last_layer_after_turn"][turn])


class PublishedReader(KVCacheManager):
    """The K/V cache over the bare transformer, as the published scripts use it."""

    def __init__(self, model: CausalWanTransformer, edit: EditConfig):
        self.model = model
        super().__init__(self._encode, "golden", edit, KVStore())

    def _encode(self, latent, text, rows, view, past):
        stride = self.edit.temporal_stride
        return self.model.encode_frame(latent[None, :, None], text[None, None], view, stride, past)[0]

    def denoiser(self, memory: AnchorMemory, text: torch.Tensor):
        view, past = self.gather(memory, text)
        context = self.model.embed_text(text[None, None])

        def denoiser(x, time):
            time = torch.full((1, 1), time)
            stride = self.edit.temporal_stride
            return self.model(x[None, :, None], time, context, (view,), stride, past)[0, :, 0]

        return denoiser


def negative_prompt(data: dict[str, torch.Tensor], guidance: float) -> torch.Tensor:
    """The negative prompt; where guidance is off a file may lack it, and nothing reads it."""
    return data["prompt_valid"][0] if guidance == 1 and "neg_valid" not in data else data["neg_valid"]


@torch.no_grad()
def check_rollout(path: Path):
    model, facts = model_of(path), metadata(path)
    check = check_multistep_row if "num_inference_steps" in facts else check_rollout_row
    for data in batch_rows(load_file(path)):
        check(model, data, facts)


def check_multistep_row(model: CausalWanTransformer, data: dict[str, torch.Tensor], facts: dict[str, str]):
    """Turn by turn from the file's own history, all of which is encoded with the current turn's prompt."""
    count, shift, guidance = int(facts["num_inference_steps"]), float(facts["shift"]), float(facts["guidance"])
    schedule = SAMPLERS["euler"].schedule((), count, shift)
    close(torch.tensor(schedule.sigmas[:-1]), data["sigmas"], 1e-6)
    close(torch.tensor(schedule.times), data["timesteps"], 1e-3)
    edit = EditConfig(temporal_stride=int(facts["stride"]), slot_mode="absolute")
    negative = negative_prompt(data, guidance)
    first = data["first"][0, 0]
    height, width = first.shape[-2] * 8, first.shape[-1] * 8
    geometry = Geometry(height, width, height, width, 0, 0, height, width)
    policy = MemoryPolicy(0, len(data["prompt_valid"]) + 1)
    memory = AnchorMemory.start(first, data["prompt_valid"][0], torch.zeros(3, height, width), geometry, policy)
    for turn, prompt in enumerate(data["prompt_valid"]):
        reader = PublishedReader(model, edit)
        branches = (reader.denoiser(memory.with_prompt(text), text) for text in (prompt, negative))
        latent = euler(guided(*branches, guidance), iter([data["init_noise"][turn, 0, 0]]), schedule.sigmas)
        close(latent, data["latents"][turn, 0, 0], ROLLOUT)
        memory = memory.commit(Turn(data["latents"][turn, 0, 0], "", prompt))


def check_rollout_row(model: CausalWanTransformer, data: dict[str, torch.Tensor], facts: dict[str, str]):
    times, shift, guidance = json.loads(facts["steps"]), float(facts["shift"]), float(facts["guidance"])
    sigmas = [published_sigma(time, shift) for time in times]
    edit = EditConfig(temporal_stride=int(facts["stride"]), anchor_prompt="first_prompt", slot_mode="absolute")
    prompts, negative = data["prompt_valid"], negative_prompt(data, guidance)

    reader = PublishedReader(model, edit)
    first = data["first"][0, 0]
    policy = MemoryPolicy(0, len(prompts) + 1)
    height, width = first.shape[-2] * 8, first.shape[-1] * 8
    geometry = Geometry(height, width, height, width, 0, 0, height, width)
    # the published code keeps a second history under the negative prompt
    with_prompt = AnchorMemory.start(first, prompts[0], torch.zeros(3, height, width), geometry, policy)
    under_negative = with_prompt
    for turn, prompt in enumerate(prompts):
        noise = iter([data["init_noise"][turn, 0, 0], *data["renoise"][turn, :, 0]])
        predict = guided(reader.denoiser(with_prompt, prompt), reader.denoiser(under_negative, negative), guidance)
        latent = renoise(predict, noise, times, sigmas)
        close(latent, data["latents"][turn, 0, 0], ROLLOUT)
        with_prompt = reader.commit(with_prompt, Turn(latent, "", prompt))
        under_negative = reader.commit(under_negative, Turn(latent, "", negative))


def check_scheduler(path: Path):
    data = load_file(path)
    for shift in (1, 5, 8):
        for suffix, count in (("", 1000), ("_n4", 4), ("_n50", 50)):
            close(shifted_sigmas(count, shift)[:-1], data[f"sigmas_shift{shift}{suffix}"], 1e-6)
        grid = shifted_sigmas(1000, shift)[:-1]
        sigma = nearest_sigma(data["lookup_query"], grid)
        close(sigma, data[f"lookup_sigma_shift{shift}"], 1e-6)
        sigma = sigma[:, None, None, None]
        noisy = (1 - sigma) * data["x0_in"] + sigma * data["noise_in"]
        close(noisy, data[f"add_noise_shift{shift}"], 1e-5)
    sigmas = shifted_sigmas(48, 5)[:-1]
    close(sigmas, data["cd48_sigmas"], 1e-6)
    close(sigmas * 1000, data["cd48_timesteps"], 1e-3)


@torch.no_grad()
def check_sequence_against_cache(path: Path):
    model, data = model_of(path), load_file(path)
    stride = int(metadata(path)["stride"])
    x, t = data["seq"].transpose(1, 2), data["t"]
    prompts = data["prompt_valid"]
    text = torch.cat([prompts[..., :1, :, :], prompts], dim=-3)  # frame 0 has prompt 0
    text = text.expand(len(x), -1, -1, -1)
    length = torch.tensor([model.config.text_len] * x.shape[2])
    first_token = length.clone()
    first_token[0] = 1
    for lengths, names in (
        (first_token, ("flow_train", "flow_cached_1token_prompt0")),
        (length, ("flow_cached_fullprompt0",)),
    ):
        flow = model(x, t, model.embed_text(text, lengths), stride=stride).transpose(1, 2)
        for name in names:
            close(flow, data[name])


@torch.no_grad()
def check_against_diffusers(path: Path):
    model, data = model_of(path), load_file(path)
    text = data["prompt_valid"][:, None]
    batch, _, frames = data["x4"].shape[:3]
    close(model(data["x"], torch.full((batch, 1), 777.0), text), data["flow_t777"])
    views, text = bidirectional_views(frames), text.expand(-1, frames, -1, -1)
    close(model(data["x4"], torch.full((batch, frames), 500.0), text, views, 1), data["flow4_t500"])


def check_buckets(path: Path):
    data = json.loads(path.read_text())
    for name, expected in data["bucket_lists"].items():
        base, step, ratio = (int(part) for part in name.split("_"))
        assert buckets(base, step, ratio) == [tuple(size) for size in expected]
    for name, choices in data.items():
        if name.startswith("choices_"):
            base, step, ratio = (int(part) for part in name.split("_")[1:])
            sizes = buckets(base, step, ratio)
            for source, chosen in choices.items():
                height, width = map(int, source.split("x"))
                assert nearest_bucket(height, width, sizes) == tuple(chosen), source


def check_keymap(path: Path):
    for ours, theirs in json.loads(path.read_text()).items():
        assert to_wan_name(theirs) == ours
