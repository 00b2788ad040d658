"""The mathematics of the curriculum against values of the published research code, one test per f_* file.

`pytest tests -k golden --golden FOLDER` runs any folder in the same layout. What differs from the published code on
purpose (the text of frame 0, noise levels from a grid, times rounded to whole numbers) is done here as published. All
random numbers come from the file, in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anchoredit_model.config import EditConfig, TransformerConfig
from anchoredit_model.memory.visibility import bidirectional_views
from anchoredit_model.networks.full_sequence import sequence_denoiser
from anchoredit_model.networks.transformer import CausalWanTransformer, TextContext
from anchoredit_model.samplers import guided, nearest_sigma, shifted_sigmas
from train.stages.degrade import KINDS, DegradationConfig, apply_degradation, sample_degradation
from train.stages.losses import (
    add_noise,
    consistency_loss,
    critic_loss,
    flow_matching_loss,
    frame_weights,
    generator_loss,
)
from train.stages.rollout import SessionCache, last_step_x0, one_pass, replace_frames, rollout
from train.stages.timesteps import shifted, sigma_of

STEPS = (1000, 750, 500, 250)
STRIDE = 4
LOSS = 1e-5  # relative
GRADIENT_NORM = 1e-4  # relative


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        files = sorted(metafunc.config.getoption("--golden").glob("f_*.safetensors"))
        metafunc.parametrize("golden_file", files, ids=[path.name for path in files])


def test_golden_losses(golden_file: Path):
    checks = {
        "f_s2": check_causal_forcing,
        "f_degradation": check_degradation,
        "f_cd": check_consistency,
        "f_dmd_generator": check_generator,
        "f_dmd_critic": check_critic,
    }
    check = next(check for name, check in checks.items() if golden_file.name.startswith(name))
    check(Golden(golden_file))


# ---------------------------------------------------------------- files, models, texts


class Golden:
    """One file: its tensors, its metadata, and its random numbers in order."""

    def __init__(self, path: Path):
        self.folder, self.data = path.parent, load_file(path)
        with safe_open(path, framework="pt") as file:
            self.metadata = {name: _parsed(text) for name, text in file.metadata().items()}
        self.letter = next((part for part in path.stem.split("_") if re.fullmatch("[A-Z]", part)), "A")
        order = {int(found[1]): name for name in self.data if (found := re.match(r"draw(\d+)_", name))}
        self._names = iter([order[number] for number in sorted(order)])

    def random(self) -> Tensor:
        return self.data[next(self._names)]

    def randoms(self, count: int) -> list[Tensor]:
        return [self.random() for _ in range(count)]

    def model(self, scale: float = 1.0) -> CausalWanTransformer:
        """The random model with all parameters scaled: that is how student, teacher and scores differ."""
        states = sorted(self.folder.glob(f"a_model{self.letter}_state*.safetensors"))
        state = {name: scale * tensor for part in states for name, tensor in load_file(part).items()}
        model = CausalWanTransformer(self.sizes())
        model.load_state_dict(state)
        return model

    def sizes(self) -> TransformerConfig:
        """The sizes in the metadata of any forward of that model."""
        for path in sorted(self.folder.glob(f"[bcd]_*_{self.letter}*.safetensors")):
            with safe_open(path, framework="pt") as file:
                config = json.loads(file.metadata()["config"])
            names = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "text_len", "eps")
            return TransformerConfig(**{name: config[name] for name in names})
        raise FileNotFoundError(f"{self.folder} has no forward of model {self.letter}")

    def frame_texts(self) -> Tensor:
        """[B, T + 1, rows, E]; the published code gives frame 0 the first turn's prompt."""
        prompts = self.data["prompt_valid"]
        return torch.cat([prompts[:, :1], prompts], dim=1)

    def negative(self, frames: int) -> Tensor:
        """The negative prompt for some frames, [B, frames, rows, E]; where guidance is off a file may lack it."""
        text = self.data.get("neg_valid", torch.zeros_like(self.data["prompt_valid"][0, 0]))
        return text.expand(len(self.data["image_latents"]), frames, -1, -1)

    def check(self, loss: Tensor, model: CausalWanTransformer) -> None:
        """The loss, and the gradient that it leaves in the model's parameters."""
        torch.testing.assert_close(loss.float(), self.data["loss"], rtol=LOSS, atol=0)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        norms = torch.stack([gradients[name].norm() for name in self.metadata["grad_param_names"]])
        torch.testing.assert_close(norms, self.data["gradnorms"], rtol=GRADIENT_NORM, atol=0)
        for name, expected in self.data.items():
            if name.startswith("grad."):
                error = (gradients[name.removeprefix("grad.")] - expected).norm()
                assert error < GRADIENT_NORM * expected.norm(), name


def _parsed(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def first_row_only(model: CausalWanTransformer, text: Tensor) -> TextContext:
    """The published training mask: frame 0 sees the first row of its text, the others all 512."""
    return model.embed_text(text, torch.tensor([1] + [model.config.text_len] * (text.shape[1] - 1)))


def looked_up(times: Tensor, shift: float) -> Tensor:
    """The published noise level: the nearest one on a grid of 1000."""
    return nearest_sigma(times.float(), shifted_sigmas(1000, shift)[:-1])


def frame_of(predict: Callable, number: int, frames: int) -> Callable:
    """One frame of a whole clean sequence [B, frames, C, h, w] as the published scores see it."""

    def of(sequence: Tensor) -> Callable:
        def predict_one(noisy: Tensor, times: Tensor) -> Tensor:
            whole = torch.cat([sequence[:, :number], noisy, sequence[:, number + 1 :]], dim=1)
            return predict(whole, F.pad(times, (number, frames - 1 - number)))[:, number : number + 1]

        return predict_one

    return of


# ---------------------------------------------------------------- checks


def check_causal_forcing(golden: Golden):
    metadata, clean, times = golden.metadata, golden.data["image_latents"], golden.data["timesteps"]
    training = metadata["training"]
    torch.testing.assert_close(published_times(golden), times)
    noise = golden.random()
    replaced = torch.zeros(clean.shape[:2], dtype=torch.bool)
    if training.get("self_forcing_prob"):  # else the file has no mask
        replaced = F.pad(golden.random() < training["self_forcing_prob"], (1, 1))
        torch.testing.assert_close(replaced.float(), golden.data["replace_mask"])

    model, sigma = golden.model(), looked_up(times, metadata["shift"])
    views = bidirectional_views(clean.shape[1]) if metadata["model"]["bidirectional_self_attn"] else None
    predict = sequence_denoiser(model, clean[:, :0], first_row_only(model, golden.frame_texts()), views, STRIDE)
    mixed = replace_frames(clean, one_pass(predict, clean, noise, times, sigma), replaced)
    torch.testing.assert_close(mixed, golden.data.get("sf_latents", clean), atol=2e-5, rtol=0)
    weights = frame_weights(clean.shape[1] - 1, training["turn_weight_alpha"], replaced)
    flow = predict(add_noise(mixed, noise, sigma), times)
    golden.check(flow_matching_loss(flow, clean, noise, weights), model)


def published_times(golden: Golden) -> Tensor:
    """Whole times between bounds of which the upper one grows with the turn."""
    metadata, training = golden.metadata, golden.metadata["training"]
    top, bottom, each = golden.randoms(3)
    low, high = training["first_frame_noise_min_ratio"], training["first_frame_noise_max_ratio"]
    top = shifted(
        1000 * (training["u_last_max_min_ratio"] + (1 - training["u_last_max_min_ratio"]) * top), metadata["shift"]
    )
    top = top / 1000
    bottom = torch.minimum(low + (high - low) * bottom, top)
    first = torch.minimum(torch.maximum(bottom + 1e-4, torch.full_like(bottom, high)), top)
    frames = each.shape[1]
    position = torch.linspace(0, 1, frames) if training["monotonic_timestep"] else torch.ones(frames)
    bound = first[:, None] + (top - first)[:, None] * position
    u = (bottom[:, None] + (bound - bottom[:, None]) * each).clamp(0, 1)
    span = metadata["max_step"] - metadata["min_step"]
    return (metadata["min_step"] + u * span).floor().clamp(metadata["min_step"], metadata["max_step"] - 1)


def check_degradation(golden: Golden):
    """The random numbers in the published order; there, a batch has one block size and one blur."""
    config, x = golden.metadata["cfg"], golden.data["x"]
    batch, frames, channels = x.shape[:3]
    assert not config["p_vae_rt"], "needs the VAE of those numbers"
    names = {
        "growing": "monotonic_degradation",
        "min_strength": "degrade_lower_frac",
        "colour_scale": "color_scale_eps",
        "colour_bias": "color_bias_eps",
        "low_frequency_amplitude": "lowfreq_amp_max",
        "laplace_scale": "laplace_b_max",
        "blur_sigma": "blur_sigma_max",
    }
    settings = DegradationConfig(
        block_sizes=tuple(config["block_sizes"]), **{ours: config[theirs] for ours, theirs in names.items()}
    )
    position = torch.linspace(0, 1, frames) if settings.growing else torch.ones(frames)

    def per_frame() -> Tensor:
        return golden.random().view(batch, frames)

    def per_channel() -> Tensor:
        return 2 * golden.random().view(batch, frames, channels) - 1

    sampled = {"strength": settings.min_strength + (1 - settings.min_strength) * position * per_frame()}
    hit = {"colour": per_frame() < config["p_color"]}
    sampled |= {"scale": per_channel(), "bias": per_channel()}
    # a kind of probability 0 has no random numbers
    if config["p_lowfreq"]:
        hit["low_frequency"] = per_frame() < config["p_lowfreq"]
        sampled |= {"field": 2 * golden.random().unflatten(0, (batch, frames)) - 1, "amplitude": per_frame()}
    if config["p_block"]:
        hit["block"] = per_frame() < config["p_block"]
        sampled["block"] = golden.random().expand(batch, frames)
    if config["p_laplace"]:
        hit["laplace"] = per_frame() < config["p_laplace"]
        sampled["laplace"] = golden.random()
    if config["p_blur"]:
        hit["blur"] = per_frame() < config["p_blur"]
        sampled["blur"] = golden.random().expand(batch, frames)
    harmless = sample_degradation(x.shape, settings, torch.Generator())
    never = dict.fromkeys(KINDS, torch.zeros(batch, frames, dtype=torch.bool))
    sample = replace(harmless, hit=never | hit, **sampled)
    torch.testing.assert_close(apply_degradation(x, sample, settings), golden.data["y"], atol=1e-5, rtol=1e-5)


def check_consistency(golden: Golden):
    metadata, latents = golden.metadata, golden.data["image_latents"]
    turn, index, noise = golden.random().item(), golden.random().item(), golden.random()
    batch, texts = len(latents), golden.frame_texts()

    def encoded(model: CausalWanTransformer) -> SessionCache:
        cache = SessionCache(model, stride=STRIDE)
        for frame in range(turn):
            cache.encode_frame(latents[:, frame], texts[:, frame : frame + 1])
        return cache

    def by_published_x0(predict: Callable) -> Callable:
        """Noise is added by the grid of 48, x0 computed by that of 1000: the flow compensates for the difference."""

        def rescaled(noisy: Tensor, times: Tensor) -> Tensor:
            factor = looked_up(times, metadata["model_shift"]) / sigma_of(times)
            return predict(noisy, times) * factor[..., None, None, None]

        return rescaled

    student, average, teacher = (golden.model(metadata[f"scale_{name}"]) for name in ("generator", "ema", "teacher"))
    text, negative = texts[:, turn : turn + 1], golden.negative(1)
    memory = encoded(teacher)
    grid = shifted_sigmas(metadata["N"], metadata["cd_shift"])
    sigmas = tuple(grid[step].expand(batch, 1) for step in (index, index + 1))
    loss = consistency_loss(
        by_published_x0(encoded(student).denoiser(text)),
        by_published_x0(encoded(average).denoiser(text)),
        guided(memory.denoiser(text), memory.denoiser(negative), metadata["guidance"]),
        latents[:, turn : turn + 1],
        noise,
        tuple(1000 * sigma for sigma in sigmas),
        sigmas,
    )
    golden.check(loss, student)


def generated_history(golden: Golden, model: CausalWanTransformer, turns: int) -> tuple[SessionCache, Tensor]:
    """The first turns, rolled out with the next noise of the file, and the cache before the last of them."""
    cache = SessionCache(model, stride=STRIDE)
    noise = [torch.stack([part.flatten(0, -4) for part in golden.randoms(len(STEPS))]) for _ in range(turns)]
    latents, edit = golden.data["image_latents"], EditConfig(timesteps=STEPS)
    sigmas = looked_up(torch.tensor(STEPS), golden.metadata["model_shift"]).tolist()
    if not turns:
        return cache, latents[:, :1]
    return cache, rollout(cache, latents, golden.frame_texts(), torch.stack(noise), edit, sigmas=sigmas)


def scores(golden: Golden, name: str, turn: int) -> tuple[CausalWanTransformer, Callable, Callable]:
    """A score model, and how it predicts one frame of a sequence under the prompts and the negative prompt."""
    model, frames = golden.model(golden.metadata[f"scale_{name}"]), golden.data["image_latents"].shape[1]
    no_frames = golden.data["image_latents"][:, :0]
    texts = (golden.frame_texts(), golden.negative(frames))
    whole = (sequence_denoiser(model, no_frames, first_row_only(model, text), stride=STRIDE) for text in texts)
    return model, *(frame_of(predict, turn, frames) for predict in whole)


def score_times(golden: Golden) -> Tensor:
    """Whole times [B, 1], shifted and then cut to whole numbers again."""
    times, shift = golden.random().float()[:, None], golden.metadata["score_timestep_shift"]
    if shift > 1:
        times = shifted(times, shift).floor().clamp(golden.metadata["min_step"], golden.metadata["max_step"] - 1)
    return times


def after(history: Tensor, frames: int) -> Tensor:
    """The published sequence: the history, then zeros."""
    return F.pad(history, (0, 0, 0, 0, 0, 0, 0, frames - history.shape[1]))


def check_generator(golden: Golden):
    metadata, latents = golden.metadata, golden.data["image_latents"]
    turn, texts = golden.random().item(), golden.frame_texts()
    generator = golden.model(metadata["scale_generator"])
    cache, history = generated_history(golden, generator, turn - 1)
    cache.encode_frame(history[:, -1], texts[:, turn - 1 : turn])
    step = golden.random().item()
    noise = torch.stack([part.flatten(0, -4)[:, None] for part in golden.randoms(step + 1)])
    sigmas = looked_up(torch.tensor(STEPS), metadata["model_shift"]).tolist()
    x0 = last_step_x0(cache.denoiser(texts[:, turn : turn + 1]), noise, step, STEPS, sigmas)

    time = score_times(golden)
    sequence = after(history, latents.shape[1])
    _, fake, _ = scores(golden, "fake", turn)
    _, real, without = scores(golden, "real", turn)
    # published guidance is x0_c + g (x0_c - x0_u)
    real = guided(real(sequence), without(sequence), 1 + metadata["real_guidance"])
    noise, sigma = golden.random()[:, None], looked_up(time, metadata["model_shift"])
    golden.check(generator_loss(x0, real, fake(sequence), noise, time, sigma), generator)


def check_critic(golden: Golden):
    turn = golden.random().item()
    _, history = generated_history(golden, golden.model(golden.metadata["scale_generator"]), turn)
    time = score_times(golden)
    fake, predict, _ = scores(golden, "fake", turn)
    predict = predict(after(history, golden.data["image_latents"].shape[1]))
    sigma = looked_up(time, golden.metadata["model_shift"])
    golden.check(critic_loss(predict, history[:, turn:], golden.random()[:, None], time, sigma), fake)
