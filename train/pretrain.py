"""First stage: a transformer that follows one instruction and keeps the rest, then short chains of turns.

    python -m train pretrain --data runs/data --vae anchoredit_model/tiny/vae \\
        --text anchoredit_model/tiny/text_encoder --out runs/pretrain --minutes 90

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
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchoredit_model.checkpoint import save_checkpoint
from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.files import whole_file
from anchoredit_model.text import TextEncoder
from anchoredit_model.transformer import CausalWanTransformer
from anchoredit_model.vae import ImageVAE
from anchoredit_model.views import FrameView, sequence_views

from .dataset import load_chunk

_SAMPLER_TIMES = (1000.0, 750.0, 500.0, 250.0)
_SAMPLER_WEIGHTS = (0.4, 0.25, 0.2, 0.15)
_CHANGED = 0.15  # mean absolute difference of normalised latents that counts as a change
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
    own = torch.tensor(_SAMPLER_TIMES)[torch.multinomial(torch.tensor(_SAMPLER_WEIGHTS), count, replacement=True)]
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--chain-from", type=float, default=0.55, help="share of the budget after which chains join")
    parser.add_argument("--chain-share", type=float, default=0.5)
    parser.add_argument("--change-weight", type=float, default=3.0)
    parser.add_argument("--dropout", type=float, default=0.05, help="of the instruction, for guidance")
    parser.add_argument("--history-noise", type=float, default=0.2, help="on remembered turns of chains, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chunks", type=int, help="use only this many chunks of each layout")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    vae = ImageVAE.from_pretrained(args.vae)
    encoder = TextEncoder.from_pretrained(args.text)
    table = {"": 0}
    data: dict[str, Sequences] = {}

    def load(layout: str) -> Tensor:
        """Loads one layout's sessions; returns the states of all texts known so far."""
        latents, texts = encode_dataset(args.data, layout, vae, args.out, args.chunks)
        data[layout] = Sequences(latents, text_table(texts, table))
        print(f"{layout}: {len(latents)} sessions, {len(table)} different instructions", flush=True)
        return embed_table(table, encoder)

    states = load("star")

    config = TransformerConfig.named("tiny")
    small = TransformerConfig.from_json({**config.to_json(), "text_dim": states.shape[2]})
    model = CausalWanTransformer(small)
    _initialise(model)
    matrices = [p for name, p in model.blocks.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimisers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
    ema = Ema(model, 0.999)
    step, spent = 0, 0.0
    checkpoint = args.out / "training.pt"
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        ema.shadow = saved["ema"]
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        step, spent = saved["step"], saved["spent"]
        torch.set_rng_state(saved["rng"])

    def save() -> None:
        state = {"model": model.state_dict(), "ema": ema.shadow, "step": step, "spent": spent}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in optimisers], "rng": torch.get_rng_state()}
        with whole_file(checkpoint, "training state") as unfinished:
            torch.save(state, unfinished)
        edit = EditConfig(area=128, area_step=128, area_ratio=1.0, turns=4)
        save_checkpoint(args.out / "transformer.safetensors", widen_text(ema.shadow, config.text_dim), config, edit)

    if not args.no_compile:  # block by block: one short compilation serves all of them
        for block in model.blocks:
            block.compile(dynamic=False)
    budget = args.minutes * 60
    recent, reported, saved_at = [], time.monotonic(), time.monotonic()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    with open(args.out / "log.jsonl", "a") as log:
        while spent < budget:
            began = time.monotonic()
            progress = spent / budget
            chained = progress > args.chain_from and torch.rand(()).item() < args.chain_share
            layout = "chain" if chained else "star"
            if layout not in data:
                states = load(layout)
            # a chain's batch is smaller, so that both kinds cost about the same
            picked = torch.randint(len(data[layout].latents), (args.batch * 2 // 3 if chained else args.batch,))
            latents = data[layout].latents[picked].float()
            numbers = F.pad(data[layout].texts[picked], (1, 0))  # the source's text is number 0
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(progress, args.lr)
            with torch.autocast("cpu", torch.bfloat16):
                loss = flow_loss(
                    model, latents, states[numbers], layout, args.change_weight, args.dropout, args.history_noise
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            step += 1
            ema.update(model, step)
            now = time.monotonic()
            if step > 2:  # the first steps compile
                spent += now - began
            recent.append((loss.item(), now - began, len(picked), layout))
            if now - reported > 20:
                row = {"step": step, "minutes": round(spent / 60, 2), "lr": learning_rate(progress, args.lr)}
                for kind in ("star", "chain"):
                    if losses := [entry[0] for entry in recent if entry[3] == kind]:
                        row[kind] = round(sum(losses) / len(losses), 4)
                row["sessions_per_s"] = round(sum(r[2] for r in recent) / sum(r[1] for r in recent), 1)
                print(json.dumps(row), flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
                recent, reported = [], now
            if now - saved_at > 240:
                save()
                saved_at = now
    save()


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
