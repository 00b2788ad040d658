"""Train the small text encoder: its vocabulary, then states that encode the meaning of an instruction.

    python -m train text --out runs/tiny --set text.seed=0        # about 2 minutes on two CPU cores

umT5 is pretrained on text, for which two minutes are too short. The studio labels each of its instructions (kind,
object, colour, ...), so the encoder is trained by classification: linear heads predict every slot from the mean of the
states and from the state of the end token. The heads are not kept. Noise (typing errors, fillers, lost and wrong
tokens) makes the encoder robust to free typing.

Shapes: B texts, N tokens of the longest one, D = d_model, S slots, C classes of all slots together.
"""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.text_encoder import END_ID, PAD_ID, UNKNOWN_ID, TextEncoder
from studio.sessions import INSTRUCTION_SLOTS, sample_instructions

from ..config import TextConfig
from .parts import is_finished, mark_finished

VOCABULARY_SIZE = 1000  # 256 of them are bytes, the fallback for any text
FIRST_WORD_PIECE = 3 + 256  # after pad, end, unknown and the bytes
MODEL_SIZES: dict[str, Any] = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 3}
HELD_OUT_SHARE = 0.1  # of the distinct texts
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 2e-3
WARM_UP_STEPS = 50
POSITION_BIAS_STD = 2.0

OPENERS = ("please", "now", "could you", "can you", "i want you to", "hey,", "ok,", "and then", "next,", "let's")
CLOSERS = (".", "!", "?", "...", " please", ", please", " now", " for me", " thanks", ", thank you", " if you can")
FILLERS = ("just", "simply", "maybe", "really", "a bit", "um", "this", "here", "kindly", "quickly")
# For the vocabulary only, so that free typing is not split into letters.
COMMON_WORDS = (
    "the a an it its this that these those is are be was to of in on at with from into and or but not no yes do does "
    "make made change turn put add remove delete move keep leave take give set get let have has want need like look "
    "more less very much little big small large tiny left right top bottom middle center centre up down under over "
    "above below behind between next near far color colour picture image photo scene background object thing shape "
    "instead again back same other another one two three all every some each only also should would could can will "
    "please now then here there my your me you i we he she they who what where when how"
)


def build_vocabulary(corpus: list[str], size: int = VOCABULARY_SIZE) -> bytes:
    """Return a spiece.model with umT5's special ids and byte fallback, and fewer pieces if the corpus has fewer.

    The vocabulary folds case, so that the encoder sees no capitals.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        byte_fallback=True,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,!?'-",
        pad_id=PAD_ID,
        eos_id=END_ID,
        unk_id=UNKNOWN_ID,
        bos_id=-1,
        num_threads=1,  # the same file on every machine
        minloglevel=1,
    )
    return model.getvalue()


def build_encoder(vocabulary: bytes) -> TextEncoder:
    """Return the small encoder with random weights for this vocabulary."""
    from sentencepiece import SentencePieceProcessor
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=SentencePieceProcessor(model_proto=vocabulary).get_piece_size(),
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,  # typing errors regularise enough, and dropout costs a fifth of the time
        is_encoder_decoder=False,
        use_cache=False,
        **MODEL_SIZES,
    )
    model = UMT5EncoderModel(config)
    # umT5 starts almost without word order: after 600 steps it still guessed which object "swap the box for a heart"
    # removes. Heads that attend to different sides from the start know it after 300.
    for name, parameter in model.encoder.block.named_parameters():
        if name.endswith("relative_attention_bias.weight"):
            nn.init.normal_(parameter, std=POSITION_BIAS_STD)
    return TextEncoder(model, vocabulary)


class SlotHeads(nn.Module):
    """Classify every slot linearly, from the mean of the states and from the state of the end token."""

    def __init__(self, width: int, classes: list[int]):
        super().__init__()
        self.classes = classes
        self.readers = nn.ModuleList(nn.Linear(width, sum(classes)) for _ in range(2))

    def forward(self, states: Tensor, mask: Tensor) -> list[tuple[Tensor, ...]]:
        """Map states [B, N, D] and mask [B, N] to the logits of two readers: for each S tensors [B, classes]."""
        lengths = mask.sum(1)  # [B]
        mean = (states * mask[..., None]).sum(1) / lengths[:, None]  # [B, D]
        end = states[torch.arange(len(states)), lengths - 1]  # [B, D]
        return [
            reader(summary).split(self.classes, dim=-1)  # [B, C] -> S x [B, classes]
            for reader, summary in zip(self.readers, (mean, end), strict=True)
        ]


def slot_loss(logits: list[tuple[Tensor, ...]], labels: Tensor) -> Tensor:
    """Return the cross entropy over the slots that apply: labels [B, S], -100 where one does not."""
    total = sum(
        F.cross_entropy(slot, label, ignore_index=-100, reduction="sum")
        for reader in logits
        for slot, label in zip(reader, labels.T, strict=True)
    )
    return total / (len(logits) * (labels >= 0).sum().clamp(min=1))


def add_typing_noise(text: str, rng: random.Random) -> str:
    """Return the instruction as a person may type it: with openers, closers, a filler word, typing errors.

    Chinese, which has no spaces, stays unchanged.
    """
    if not text.isascii():
        return text
    words = text.rstrip(".!? ").split()
    if rng.random() < 0.2:
        words.insert(rng.randrange(len(words) + 1), rng.choice(FILLERS))
    if rng.random() < 0.3:
        words.insert(0, rng.choice(OPENERS))
    for index, word in enumerate(words):
        # short words stay unchanged: one letter decides between "on" and "in"
        if len(word) > 3 and rng.random() < 0.03:
            at = rng.randrange(1, len(word) - 1)
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            words[index] = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return " ".join(words) + (rng.choice(CLOSERS) if rng.random() < 0.5 else "")


def add_token_noise(ids: list[int], vocabulary_size: int, rng: random.Random, rate: float = 0.02) -> list[int]:
    """Drop tokens or replace them by random pieces, each at half the rate; the end token stays."""
    kept = []
    for token in ids[:-1]:
        u = rng.random()
        if u >= rate:
            kept.append(token)
        elif u < rate / 2:
            kept.append(rng.randrange(FIRST_WORD_PIECE, vocabulary_size))
    return [*kept, END_ID]


def split_pool(texts: list[str], rng: random.Random, share: float = HELD_OUT_SHARE) -> tuple[list[int], list[str]]:
    """Return the indices to train on, and the distinct texts that are held out.

    A text is held out only if each of its words occurs in two others: an unknown word cannot be guessed.
    """
    distinct = sorted(set(texts))
    times = Counter(word for text in distinct for word in set(text.split()))
    held_out: set[str] = set()
    for text in rng.sample(distinct, len(distinct)):
        words = set(text.split())
        if len(held_out) < share * len(distinct) and words and all(times[word] > 2 for word in words):
            held_out.add(text)
            times.subtract(words)
    return [index for index, text in enumerate(texts) if text not in held_out], sorted(held_out)


def pretrain(encoder: TextEncoder, texts: list[str], labels: Tensor, steps: int, seed: int) -> SlotHeads:
    """Train the encoder in place on texts with labels [len(texts), S], and return the heads to measure it."""
    rng = random.Random(seed)
    heads = SlotHeads(encoder.model.config.d_model, list(INSTRUCTION_SLOTS.values()))
    parameters = [*encoder.model.requires_grad_(True).train().parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LEARNING_RATE, total_steps=steps + 1, pct_start=min(0.3, WARM_UP_STEPS / steps)
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        chosen = rng.choices(range(len(texts)), k=BATCH_SIZE)
        ids = encoder.tokenise([add_typing_noise(texts[index], rng) for index in chosen])
        ids = [add_token_noise(row, encoder.model.config.vocab_size, rng) for row in ids]
        loss = slot_loss(heads(*encoder.states(ids)), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"text: step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    encoder.model.requires_grad_(False).eval()
    return heads


@torch.no_grad()
def measure(encoder: TextEncoder, heads: SlotHeads, texts: list[str], labels: Tensor) -> Tensor:
    """Return the accuracy of both readers (mean, end) on every slot [2, S]; nan where a slot never applies."""
    right = []
    for start in range(0, len(texts), BATCH_SIZE):
        logits = heads(*encoder.states(encoder.tokenise(texts[start : start + BATCH_SIZE])))
        guesses = torch.stack([torch.stack([slot.argmax(-1) for slot in reader], -1) for reader in logits])
        right.append(guesses == labels[start : start + BATCH_SIZE])  # [2, B, S]
    return torch.cat(right, 1).sum(1) / (labels >= 0).sum(0)


@torch.no_grad()
def normalise(encoder: TextEncoder, texts: list[str]) -> float:
    """Scale the weight of the last norm so that the states of texts have mean square 1; return the value before."""
    power = torch.cat([rows[:, : encoder.model.config.d_model] for rows in encoder.encode(texts)]).square().mean()
    encoder.model.encoder.final_layer_norm.weight.div_(power.sqrt())
    return power.item()


def run(options: TextConfig, out: Path, resume: bool = False) -> bool:
    """Sample instructions, build the vocabulary, train, measure, save in `out`; return True.

    Training is too short to be resumed: with `resume`, a finished encoder stays unchanged, and any other is trained
    from scratch. Raises AnchorEditError if an encoder would be lost, or if its accuracy is too low.
    """
    if resume and is_finished(out):
        return True
    if not resume and (out / "config.json").is_file():
        raise AnchorEditError(f"'{out}' has a text encoder", "Keep a finished one with --resume, or give another --out")
    torch.manual_seed(options.seed)
    texts, labels = sample_instructions(options.pool, torch.Generator().manual_seed(options.seed))
    rng = random.Random(options.seed)
    chosen, unseen = split_pool(texts, rng)
    seen = [texts[index] for index in chosen]
    unseen_labels = labels[[texts.index(text) for text in unseen]]
    print(f"text: {len(set(seen))} distinct instructions to learn, {len(unseen)} held out")

    corpus = [add_typing_noise(text, rng) for text in seen] + COMMON_WORDS.split() * 5
    encoder = build_encoder(build_vocabulary(corpus))
    heads = pretrain(encoder, seen, labels[chosen], options.steps, options.seed)

    exact = measure(encoder, heads, unseen, unseen_labels)
    typed = measure(encoder, heads, [add_typing_noise(text, rng) for text in seen], labels[chosen])
    for slot, name in enumerate(INSTRUCTION_SLOTS):
        columns = [f"{value:.4f}" for value in (*exact[:, slot].tolist(), *typed[:, slot].tolist())]
        print("text: {:14s} held out: mean {} end {}; typing noise: mean {} end {}".format(name, *columns))
    counts = (unseen_labels >= 0).sum(0)  # [S]; some slots have very few texts, so all count together
    overall = (exact.nan_to_num() * counts).sum(1).div(counts.sum()).min().item()
    print(f"text: all slots      held out: {overall:.4f}")
    if overall < options.min_accuracy:
        raise AnchorEditError(
            f"the accuracy on held-out instructions must be at least {options.min_accuracy}, got {overall:.4f}",
            "Raise text.steps",
        )
    power = normalise(encoder, sorted(set(seen)))
    encoder.save_pretrained(out)
    mark_finished(out)
    print(f"text: {encoder.pieces.get_piece_size()} pieces, mean square {power:.3f} -> 1, saved in {out}")
    return True
