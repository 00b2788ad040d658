"""Train the small VAE from scratch: Wan 2.1's shape at a sixth of its width, on images of the studio.

    python -m train vae --out runs/tiny --set vae.minutes=13      # two CPU cores with bf16; --resume continues

Training is 2-D (an image is a video of one frame, see `anchoredit_model.networks.vae`); the saved files have Wan's 3-D
layout. The loss is L1 for flat colours, squared error for PSNR, the L1 of differences between neighbouring pixels for
crisp edges, and a small KL that bounds the scale of the latents. Noise in proportion to the standard deviation of each
latent channel makes the decoder robust to small errors of a diffusion model. Wan 2.1: https://arxiv.org/abs/2503.20314

Shapes: B images, C = 16 latent channels, H and W height and width in pixels, h = H / 8 and w = W / 8.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.vae import (
    CONFIG_NAME,
    ImageVAE,
    OneFrameConv,
    decode_frames,
    encode_moments,
    to_image_convolutions,
)
from studio.render import compiled_layers, render
from studio.sessions import sample_images, sample_sessions

from ..config import VaeConfig
from ..interrupt import Interrupt
from .parts import is_finished, mark_finished

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

LATENT_CHANNELS = 16
IMAGE_SIZE = 128
CROP_SIZE, CROP_SHARE = 64, 0.75  # quarter images for the first part of the time: four times as many steps
RENDER_BATCH = 64
MEASURED = 2000  # images for the statistics of the latents
HELD_OUT = 64
PEAK_LEARNING_RATE = 5e-3
WARM_UP_STEPS = 30
EMA_DECAY = 0.995
SQUARED_WEIGHT, EDGE_WEIGHT, KL_WEIGHT = 2.0, 0.5, 1e-5
MAX_LATENT_NOISE = 0.1  # in standard deviations of a channel
LOG_SECONDS, SAVE_SECONDS = 10, 120
MAX_ROUNDING_LOSS = 0.05  # dB that storing in bfloat16 may cost


class ImagePool:
    """Hold images of the studio, rendered with compiled loops, as bytes [N, 3, H, W]."""

    def __init__(self, count: int, generator: torch.Generator):
        self.generator = generator
        layers = compiled_layers()
        batches = []
        for _ in range(-(-count // RENDER_BATCH)):
            scenes = sample_sessions(RENDER_BATCH, 2, generator).scenes[-1]
            batches.append((render(scenes, IMAGE_SIZE, IMAGE_SIZE, layers) * 255).round().byte())
        self.images = torch.cat(batches)

    def crops(self, count: int, side: int) -> Tensor:
        """Return random crops [count, 3, side, side] in 0..1, half of them mirrored."""
        picked = torch.randint(len(self.images), (count,), generator=self.generator)
        top, left = torch.randint(IMAGE_SIZE - side + 1, (2,), generator=self.generator).tolist()
        chosen = self.images[picked, :, top : top + side, left : left + side].float() / 255
        mirrored = torch.rand(count, 1, 1, 1, generator=self.generator) < 0.5
        return torch.where(mirrored, chosen.flip(-1), chosen)

    def spread(self, count: int) -> Tensor:
        """Return evenly spaced images of the pool as bytes [count, 3, H, W]."""
        return self.images[torch.linspace(0, len(self.images) - 1, count).long()]


def build_model(base_dim: int) -> AutoencoderKLWan:
    """Return a 2-D `AutoencoderKLWan` of Wan 2.1's shape with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    model = AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    with torch.no_grad():  # start almost without posterior noise, which would be larger than the first means
        cast(Tensor, model.quant_conv.bias)[LATENT_CHANNELS:] = -6.0
    return to_image_convolutions(model, zero_past=True)


def autoencoder_loss(model: AutoencoderKLWan, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of images [B, 3, H, W] in 0..1, and their mean squared error for the log."""
    frames = (images.to(memory_format=torch.channels_last) * 2 - 1).unsqueeze(2)  # [B, 3, 1, H, W]
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = encode_moments(model, frames).float().chunk(2, dim=1)  # each [B, C, 1, h, w]
        log_variance = log_variance.clamp(-20, 10)
        spread = mean.detach().std(dim=(0, 2, 3, 4), keepdim=True)  # [1, C, 1, 1, 1]
        strength = MAX_LATENT_NOISE * torch.rand(len(frames), 1, 1, 1, 1) * spread
        noise = (log_variance / 2).exp() * torch.randn_like(mean) + strength * torch.randn_like(mean)
        error = decode_frames(model, mean + noise).float() - frames
    squared = error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    loss = error.abs().mean() + SQUARED_WEIGHT * squared + EDGE_WEIGHT * edges + KL_WEIGHT * divergence
    return loss, squared.detach() / 4


def measure_latents(vae: ImageVAE, images: Tensor) -> None:
    """Write each latent channel's mean and standard deviation over the byte images [N, 3, H, W] into the config."""
    neutral = [0.0] * LATENT_CHANNELS, [1.0] * LATENT_CHANNELS
    vae.model.register_to_config(latents_mean=neutral[0], latents_std=neutral[1])
    with torch.autocast("cpu", torch.bfloat16):
        latents = torch.cat([vae.encode(part.float() / 255) for part in images.split(HELD_OUT)])  # [N, C, h, w]
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    vae.model.register_to_config(
        latents_mean=[round(value, 4) for value in mean.tolist()],
        latents_std=[max(round(value, 4), 1e-4) for value in std.tolist()],
    )


def decibels(squared_error: float) -> float:
    """Return the PSNR of a mean squared error of images in 0..1."""
    return -10 * math.log10(max(squared_error, 1e-10))


def measure_psnr(vae: ImageVAE, images: Tensor) -> float:
    """Return the PSNR in dB of images [N, 3, H, W] after the VAE, from their mean squared error together."""
    parts = images.split(16)
    return decibels(sum((vae.decode(vae.encode(part)) - part).square().sum().item() for part in parts) / images.numel())


class Trainer:
    """Hold the model, its EMA, the optimisers and the clock of the schedule; `state_file` has the state of them all."""

    def __init__(self, options: VaeConfig, out: Path):
        self.options, self.out = options, out
        self.started = time.monotonic()
        self.step = 0
        self.generator = torch.Generator().manual_seed(options.seed)
        stage = "decoder" if options.decoder_only else "training"
        self.state_file = out.with_name(f"{out.name}-{stage}.pt")
        self.model = self._finished_encoder() if options.decoder_only else build_model(options.base_dim)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
        self.vae = ImageVAE(cast("AutoencoderKLWan", self.ema.module))
        self.kernels = [kernel for kernel in _hidden_kernels(self.model) if kernel.requires_grad]
        self.matrices = [nn.Parameter(_as_matrix(kernel.detach())) for kernel in self.kernels]
        chosen = {id(kernel) for kernel in self.kernels}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in chosen]
        self.optimisers = [
            torch.optim.Muon(self.matrices, PEAK_LEARNING_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]

    def _finished_encoder(self) -> AutoencoderKLWan:
        """Return the VAE in the output folder with its encoder frozen, so that existing latents stay valid."""
        model = ImageVAE.from_pretrained(self.out).model.train()
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
        return model

    def update(self) -> None:
        """Run one step of both optimisers; Muon sees each 3x3 kernel as a matrix [out, 9 in] in the same memory."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        for optimiser in self.optimisers:
            optimiser.step()
        self.model.zero_grad()

    @property
    def elapsed(self) -> float:
        """Return the seconds of training so far, including those before a resume."""
        return time.monotonic() - self.started

    def save_state(self) -> None:
        """Write everything needed to continue."""
        state = {"model": self.model.state_dict(), "average": self.ema.state_dict()}
        state |= {"optimizers": [optimiser.state_dict() for optimiser in self.optimisers]}
        state |= {"step": self.step, "elapsed": self.elapsed, "base_dim": self.options.base_dim}
        state |= {"random": torch.get_rng_state(), "generator": self.generator.get_state()}
        with atomic_write(self.state_file, "training state", make_folder=True) as unfinished:
            torch.save(state, unfinished)

    def load_state(self) -> None:
        """Continue where `save_state` stopped."""
        if not self.state_file.is_file():
            raise AnchorEditError(f"training state '{self.state_file}' does not exist", "Start without --resume")
        state = torch.load(self.state_file, weights_only=True)
        if state["base_dim"] != self.options.base_dim:
            raise AnchorEditError(
                f"vae.base_dim must be {state['base_dim']} as in '{self.state_file}', got {self.options.base_dim}",
                f"Give --set vae.base_dim={state['base_dim']}",
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimizers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.started = state["step"], self.started - state["elapsed"]
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["generator"])

    def train(self, pool: ImagePool, held_out: Tensor) -> bool:
        """Train until the minutes are over; False if interrupted. The state is saved in either case."""
        with Interrupt() as interrupt:
            self._steps(pool, held_out, interrupt)
            interrupt.saving = True
            self.save_state()
        return not interrupt.requested

    def _steps(self, pool: ImagePool, held_out: Tensor, interrupt: Interrupt) -> None:
        budget = 60 * self.options.minutes
        logged_at, logged_step, saved_at = self.elapsed, self.step, self.elapsed
        losses: list[float] = []
        errors: list[float] = []
        while self.elapsed < budget and not interrupt.requested:
            cosine = (1 + math.cos(math.pi * min(self.elapsed / budget, 1))) / 2
            for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
                group["lr"] = PEAK_LEARNING_RATE * min((self.step + 1) / WARM_UP_STEPS, 1) * cosine
            side = CROP_SIZE if self.elapsed < CROP_SHARE * budget else IMAGE_SIZE
            loss, error = autoencoder_loss(self.model, pool.crops(self.options.batch_size, side))
            loss.backward()
            self.update()
            self.ema.update_parameters(self.model)
            self.step += 1
            losses.append(loss.item())
            errors.append(error.item())
            if self.elapsed - logged_at >= LOG_SECONDS:
                speed = (self.step - logged_step) * self.options.batch_size / (self.elapsed - logged_at)
                psnr = decibels(sum(errors) / len(errors))
                mean_loss = sum(losses) / len(losses)
                print(
                    f"vae: {self.elapsed:.0f}/{budget:.0f} s step {self.step} {speed:.1f} images/s "
                    f"loss {mean_loss:.4f} PSNR {psnr:.2f}",
                    flush=True,
                )
                logged_at, logged_step = self.elapsed, self.step
                losses.clear()
                errors.clear()
            if self.elapsed - saved_at >= SAVE_SECONDS:
                if not self.options.decoder_only:
                    measure_latents(self.vae, pool.spread(HELD_OUT))
                with torch.autocast("cpu", torch.bfloat16):
                    psnr = measure_psnr(self.vae, held_out)
                self.vae.save_pretrained(self.out)
                self.save_state()
                print(f"vae: step {self.step} held-out PSNR {psnr:.2f} dB, saved in {self.out}", flush=True)
                saved_at = self.elapsed


def _hidden_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels with at least 16 channels on either side."""
    modules = [module for module in model.modules() if isinstance(module, (nn.Conv2d, OneFrameConv))]
    kernels = [cast(nn.Parameter, module.weight) for module in modules]
    return [kernel for kernel in kernels if min(kernel.shape[:2]) >= 16]


def _as_matrix(kernel: Tensor) -> Tensor:
    """View a kernel [out, in, kh, kw] in channels_last as [out, kh * kw * in], which shares its memory."""
    return kernel.permute(0, 2, 3, 1).contiguous().view(len(kernel), -1)


def run(options: VaeConfig, out: Path, resume: bool = False) -> bool:
    """Train, measure the latents, choose the dtype to store, save in `out`; False if interrupted.

    With `resume`, training continues from its state if there is one; a finished VAE stays unchanged unless there are
    more minutes. Raises AnchorEditError if a VAE or a state would be lost.
    """
    torch.manual_seed(options.seed)
    held_out = sample_images(HELD_OUT, IMAGE_SIZE, IMAGE_SIZE, torch.Generator().manual_seed(options.seed + 1))
    trainer = Trainer(options, out)
    if trainer.state_file.is_file():
        if not resume:
            raise AnchorEditError(
                f"'{trainer.state_file}' has a training state", "Continue with --resume, or give another --out"
            )
        trainer.load_state()
        if not options.decoder_only and is_finished(out) and trainer.elapsed >= 60 * options.minutes:
            return True
    elif not options.decoder_only and (out / CONFIG_NAME).is_file():
        raise AnchorEditError(
            f"'{out}' has a VAE without a training state",
            f"Give another --out, or use it with --set parts.vae={out}",
        )
    if not options.decoder_only:  # any state of decoder-only training is a finished VAE
        mark_finished(out, False)
    pool = ImagePool(options.pool, trainer.generator)
    if not trainer.train(pool, held_out):
        print(f"vae: stopped and saved at step {trainer.step}, continue with --resume", flush=True)
        return False

    if not options.decoder_only:
        measure_latents(trainer.vae, pool.spread(MEASURED))
    exact = measure_psnr(trainer.vae, held_out)
    rounded = measure_psnr(ImageVAE(copy.deepcopy(trainer.vae.model).bfloat16().float()), held_out)
    # a frozen encoder must stay bit for bit the same
    frozen = cast(nn.Module, trainer.model.encoder).parameters() if options.decoder_only else ()
    lossless = all(torch.equal(weight, weight.bfloat16().float()) for weight in frozen)
    dtype = torch.bfloat16 if exact - rounded < MAX_ROUNDING_LOSS and lossless else torch.float32
    trainer.vae.save_pretrained(out, dtype)
    mark_finished(out)
    print(f"vae: held-out PSNR {exact:.2f} dB, {rounded:.2f} dB rounded to bfloat16; saved as {dtype} in {out}")
    return True
