"""First stage: a transformer that follows one instruction and keeps the rest, then short chains of turns.

    python -m train pretrain --data runs/data --vae anchoredit_model/tiny/vae \\
        --text anchoredit_model/tiny/text_encoder --out runs/pretrain

Two kinds of batch share one forward of the sequence model. *Star*: a source and several edits of it, each
seeing only the source; the source is read once for all of them. *Chain*: clean turns 0..T-1 and noisy turns
1..T, where noisy turn i sees the clean turns before it, which is what it will see at inference. The loss is
the flow-matching error (https://arxiv.org/abs/2210.02747), heavier where the edit changes the picture,
because most of it only has to be copied.

Schedules run over the time budget, so the same command serves any machine; `--resume` goes on from the last
checkpoint. The pictures come from `python -m train dataset`, encoded once into `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchoredit_model.checkpoint import save_checkpoint
from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.files import whole_file
from anchoredit_model.text import TextEncoder
from anchoredit_model.transformer import CausalWanTransformer
from anchoredit_model.vae import ImageVAE
from anchoredit_model.views import FrameView, sequence_views

from .dataset import load_chunk

_EDIT = EditConfig(area=128, area_step=128, area_ratio=1.0, turns=4)  # how the trained model edits
_SAMPLER_WEIGHTS = (0.4, 0.25, 0.2, 0.15)
_CHANGED = 0.15  # mean absolute difference of normalised latents that counts as a change
_REPORT_SECONDS, _SAVE_SECONDS = 20, 240
_FULL_AREA = 0.1  # share of the picture from which on an edit weighs `extra` per position


@dataclass(frozen=True)
class Sequences:
    """N encoded sessions: latents [N, T + 1, 16, h, w] and rows of the text table [N, T]."""

    latents: Tensor
    texts: Tensor


def teacher_views(turns: int) -> tuple[FrameView, ...]:
    """Views of 2T frames, clean turns 0..T-1 then noisy turns 1..T: noisy turn i sees clean turns 0..i-1."""
    clean = sequence_views(turns)
    noisy = tuple(FrameView(tuple(range(turn)), tuple(range(turn)), turn) for turn in range(1, turns + 1))
    return clean + noisy


def sample_times(count: int, device=None) -> Tensor:
    """Times in (0, 1000], [count]: more than half are the sampler's own, the rest uniform."""
    picked = torch.multinomial(torch.tensor(_SAMPLER_WEIGHTS), count, replacement=True)
    own = torch.tensor(_EDIT.steps, dtype=torch.float32)[picked]
    uniform = 1000 * torch.rand(count).clamp(min=1e-3)
    return torch.where(torch.rand(count) < 0.6, own, uniform).to(device)


def change_weight(target: Tensor, source: Tensor, extra: float) -> Tensor:
    """Weight [..., 1, h, w] of every latent position: 1, plus `extra` where the edit changes it.

    An edit of a small area, a smile say, gets more per position, up to 8 times: it would be lost in the mean.
    """
    changed = ((target - source).abs().mean(dim=-3, keepdim=True) > _CHANGED).float()
    area = changed.mean(dim=(-2, -1), keepdim=True)
    return 1 + extra * changed * (_FULL_AREA / area.clamp(min=1e-6)).clamp(1, 8)


def flow_loss(
    model,
    latents: Tensor,
    text: Tensor,
    layout: str,
    extra: float,
    dropout: float = 0.0,
    history_noise: float = 0.0,
) -> Tensor:
    """latents [B, T + 1, C, h, w], text [B, T + 1, rows, E] (entry 0: null) -> weighted mean squared flow error.

    In a chain the turns that are looked back at, but never the anchor, get noise of up to `history_noise`: at
    inference they are the model's own, not the truth.
    """
    batch, frames = latents.shape[:2]
    turns = frames - 1
    source, target = latents[:, :1], latents[:, 1:]
    times = sample_times(batch * turns, latents.device).view(batch, turns)
    noise = torch.randn_like(target)
    sigma = (times / 1000)[:, :, None, None, None]
    noisy = (1 - sigma) * target + sigma * noise
    if dropout:  # the null instruction in place of some, for guidance
        dropped = torch.rand(batch, turns, device=text.device)[:, :, None, None] < dropout
        text = torch.cat([text[:, :1], torch.where(dropped, text[:, :1], text[:, 1:])], dim=1)
    if layout == "star":
        sequence, words, views = torch.cat([source, noisy], 1), text, sequence_views(frames, MemoryPolicy(1, 0))
        before, still = source, torch.zeros(batch, 1, device=times.device)
    else:
        strength = history_noise * torch.rand(batch, turns, 1, 1, 1, device=latents.device)
        strength[:, 0] = 0
        history = latents[:, :-1] + strength * torch.randn_like(latents[:, :-1])
        sequence, words = torch.cat([history, noisy], 1), torch.cat([text[:, :-1], text[:, 1:]], 1)
        views, before, still = teacher_views(turns), latents[:, :-1], torch.zeros(batch, turns, device=times.device)
    flow = model(sequence.transpose(1, 2), torch.cat([still, times], 1), words, views).transpose(1, 2)
    error = (flow[:, -turns:].float() - (noise - target)).square()
    return (error * change_weight(target, before, extra)).mean()


def encode_dataset(data: Path, layout: str, vae: ImageVAE, out: Path, limit: int | None) -> tuple[Tensor, list]:
    """All chunks of one layout as latents [N, T + 1, 16, h, w] bf16 and texts [N][T]; encoded once into `out`."""
    latents, texts = [], []
    encode = torch.compile(vae.encode, dynamic=False)
    for path in sorted(data.glob(f"{layout}_*.safetensors"))[:limit]:
        cached = out / f"latents_{path.name}"
        pictures, words, _ = load_chunk(path)
        if not cached.exists():
            flat = pictures.flatten(0, 1)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                encoded = torch.cat([encode(part.float() / 255).bfloat16() for part in flat.split(64)])
            with whole_file(cached, "latents") as unfinished:
                save_file({"latents": encoded.unflatten(0, pictures.shape[:2]).contiguous()}, unfinished)
            print(f"encoded {path.name}", flush=True)
        latents.append(load_file(cached)["latents"])
        texts += words
    return torch.cat(latents), texts


def text_table(texts: list[list[str]], table: dict[str, int]) -> Tensor:
    """Numbers [N, T] of the texts in `table`, which grows; number 0 is the null instruction."""
    return torch.tensor([[table.setdefault(text, len(table)) for text in row] for row in texts])


def embed_table(table: dict[str, int], encoder: TextEncoder) -> Tensor:
    """States [len(table), rows, d_model] of every text, zero rows after its end; without the columns of zeros."""
    width = encoder.model.config.d_model
    return torch.nn.utils.rnn.pad_sequence([rows[:, :width] for rows in encoder.encode(list(table))], batch_first=True)


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps are soon forgotten
        torch._foreach_lerp_(list(self.shadow.values()), list(module.state_dict().values()), 1 - decay)


def widen_text(state: dict[str, Tensor], text_dim: int) -> dict[str, Tensor]:
    """The same weights for texts whose states are zero-padded to `text_dim`."""
    weight = state["text_embedding.0.weight"]
    return {**state, "text_embedding.0.weight": F.pad(weight, (0, text_dim - weight.shape[1]))}


def learning_rate(progress: float, peak: float) -> float:
    """Warm-up over the first 1 %, constant, then linear to zero over the last 40 % of the budget."""
    return peak * min(1.0, progress / 0.01, max(0.0, (1 - progress) / 0.4))


class Trainer:
    """Data, model, average and optimisers, and the clock that the schedules run on."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.step, self.spent = 0, 0.0
        self.vae = ImageVAE.from_pretrained(options.vae)
        self.encoder = TextEncoder.from_pretrained(options.text)
        self.table = {"": 0}
        self.data: dict[str, Sequences] = {}
        self.load("star")
        self.config = TransformerConfig.named("tiny")
        # trained without the columns that are always zero
        self.model = CausalWanTransformer(replace(self.config, text_dim=self.states.shape[2]))
        _initialise(self.model)
        self.ema = Ema(self.model, 0.999)
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=options.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]
        self.checkpoint = options.out / "training.pt"

    def load(self, layout: str) -> None:
        """Loads one layout's sessions and embeds the texts that are new."""
        latents, texts = encode_dataset(self.options.data, layout, self.vae, self.options.out, self.options.chunks)
        self.data[layout] = Sequences(latents, text_table(texts, self.table))
        self.states = embed_table(self.table, self.encoder)
        print(f"{layout}: {len(latents)} sessions, {len(self.table)} different instructions", flush=True)

    def train_step(self) -> dict:
        """One batch: its loss, seconds, number of sessions and layout."""
        options, began = self.options, time.monotonic()
        progress = self.spent / (60 * options.minutes)
        chained = progress > options.chain_from and torch.rand(()).item() < options.chain_share
        layout = "chain" if chained else "star"
        if layout not in self.data:
            self.load(layout)
        # a chain's batch is smaller, so that both kinds cost about the same
        count = options.batch * 2 // 3 if chained else options.batch
        picked = torch.randint(len(self.data[layout].latents), (count,))
        latents = self.data[layout].latents[picked].float()
        text = self.states[F.pad(self.data[layout].texts[picked], (1, 0))]  # the source's text is number 0
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(
                self.model, latents, text, layout, options.change_weight, options.dropout, options.history_noise
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(progress, options.lr)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, self.step)
        seconds = time.monotonic() - began
        self.spent += seconds
        return {"loss": loss.item(), "seconds": seconds, "sessions": count, "layout": layout}

    def train(self) -> None:
        """Trains until the minutes are over; logs every 20 seconds, saves every 4 minutes."""
        recent: list[dict] = []
        reported = saved = time.monotonic()
        with open(self.options.out / "log.jsonl", "a", encoding="utf-8") as log:
            while self.spent < 60 * self.options.minutes:
                recent.append(self.train_step())
                now = time.monotonic()
                if now - reported > _REPORT_SECONDS:
                    row = json.dumps(self._report(recent))
                    print(row, flush=True)
                    print(row, file=log, flush=True)
                    recent, reported = [], now
                if now - saved > _SAVE_SECONDS:
                    self.save()
                    saved = now
        self.save()

    def _report(self, recent: list[dict]) -> dict:
        row = {"step": self.step, "minutes": round(self.spent / 60, 2)}
        for layout in self.data:
            if losses := [entry["loss"] for entry in recent if entry["layout"] == layout]:
                row[layout] = round(sum(losses) / len(losses), 4)
        seconds = sum(entry["seconds"] for entry in recent)
        return {**row, "sessions_per_s": round(sum(entry["sessions"] for entry in recent) / seconds, 1)}

    def save(self) -> None:
        """Writes what training goes on from, and the averaged weights as a checkpoint to use."""
        state = {"model": self.model.state_dict(), "ema": self.ema.shadow, "step": self.step, "spent": self.spent}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}
        with whole_file(self.checkpoint, "training state") as unfinished:
            torch.save(state | {"rng": torch.get_rng_state()}, unfinished)
        weights = widen_text(self.ema.shadow, self.config.text_dim)
        save_checkpoint(self.options.out / "transformer.safetensors", weights, self.config, _EDIT)

    def resume(self) -> None:
        """Goes on where `save` left off."""
        if not self.checkpoint.is_file():
            raise AnchorEditError(f"nothing to resume at '{self.checkpoint}': start without --resume")
        saved = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.ema.shadow = saved["ema"]
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.spent = saved["step"], saved["spent"]
        torch.set_rng_state(saved["rng"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of python -m train dataset")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=74, help="of training; schedules run over them")
    parser.add_argument("--batch", type=int, default=20, help="sessions; each has three edits")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--chain-from", type=float, default=0.45, help="share of the budget after which chains join")
    parser.add_argument("--chain-share", type=float, default=0.5)
    parser.add_argument("--change-weight", type=float, default=3.0, help="extra weight where an edit changes something")
    parser.add_argument("--dropout", type=float, default=0.05, help="of the instruction, for guidance")
    parser.add_argument("--history-noise", type=float, default=0.2, help="on remembered turns of chains, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chunks", type=int, help="use only this many chunks of each layout")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    trainer = Trainer(options)
    if options.resume:
        trainer.resume()
    if not options.no_compile:  # block by block: one short compilation serves all of them
        for block in trainer.model.blocks:
            block.compile(dynamic=False)
    trainer.train()


def _initialise(model: CausalWanTransformer) -> None:
    """Wan's own start: Xavier for linear layers, zero for the output, so that the first flow is zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for embedding in (model.text_embedding, model.time_embedding):
        for module in embedding:
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.02)
    torch.nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    torch.nn.init.zeros_(model.head.head.weight)


if __name__ == "__main__":
    main()
