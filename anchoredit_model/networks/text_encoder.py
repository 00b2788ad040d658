"""The text encoder without ComfyUI: umT5, Wan 2.1's own or the small one AnchorEdit ships.

    encoder = TextEncoder.from_pretrained("anchoredit_model/tiny/text_encoder")
    rows, = encoder.encode(["make the circle red"])          # rows: [n, 4096]

Wan conditions on 512 rows of width 4096 and sets the rows after the end token to zero. Such rows hold nothing,
so they are left out here: a text is its n valid rows, and a caller who needs 512 of them appends zeros. A narrower
encoder fills the first `d_model` columns; the others are zero.

Legend: B texts, N tokens of the longest one, n tokens of one text, D = d_model, W = text_dim.

Sources: Wan's prompt handling is `_get_t5_prompt_embeds` in
https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/wan/pipeline_wan.py, the checkpoint keys
are the ones of transformers' `UMT5EncoderModel`, which ComfyUI's `comfy/text_encoders/t5.py` reads as well.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..atomic_write import atomic_write
from ..errors import AnchorEditError

PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2  # fixed by umT5's vocabulary; ComfyUI has the first two as literals
MAX_ROWS = 512  # Wan's max_sequence_length
TEXT_DIM = 4096  # Wan's text_dim, the width of umT5-XXL
ENCODE_BATCH = 32  # texts per forward, which bounds the memory and changes no result


class TextEncoder:
    """Encode texts by a umT5 encoder and its sentencepiece vocabulary; `model` and `vocabulary` may be trained on."""

    def __init__(self, model: Any, vocabulary: bytes, text_dim: int = TEXT_DIM):
        """Take a `UMT5EncoderModel`, the bytes of its spiece.model and the width W of the rows to return."""
        import sentencepiece

        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.text_dim = text_dim
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        size, rows, width = self.pieces.get_piece_size(), model.config.vocab_size, model.config.d_model
        if self.pieces.eos_id() != END_ID or size > rows:
            raise AnchorEditError(
                f"the vocabulary ({size} pieces, end token {self.pieces.eos_id()}) does not belong to this text "
                f"encoder ({rows} embeddings, end token {END_ID})",
                "Give the spiece.model that came with it",
            )
        if width > text_dim:
            raise AnchorEditError(
                f"the text encoder must be at most {text_dim} wide as the model's text, got {width} wide",
                "Choose the encoder that the model was trained with",
            )

    @classmethod
    def from_pretrained(
        cls,
        encoder_folder: str | Path,
        tokenizer_file_or_folder: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        text_dim: int = TEXT_DIM,
    ) -> TextEncoder:
        """Load a local encoder: our flat folder (`save_pretrained`), or a diffusers Wan folder or its text_encoder/.

        Without `tokenizer_file_or_folder` the vocabulary is beside the weights or in tokenizer/. Safetensors only.
        """
        from transformers import UMT5Config, UMT5EncoderModel

        folder, vocabulary = find_encoder(encoder_folder, tokenizer_file_or_folder)
        try:
            model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
            if model_type != "umt5":
                raise AnchorEditError(
                    f"the text encoder {folder} must be a umT5, got {model_type!r}", "Choose a umT5 text encoder"
                )
            loaded: Any = UMT5EncoderModel.from_pretrained(
                folder,
                config=UMT5Config.from_pretrained(folder, local_files_only=True),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            model, report = loaded
        except AnchorEditError:
            raise
        except Exception as error:  # transformers has exceptions of its own, which change by version
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise AnchorEditError(f"the text encoder {folder} cannot be read ({reason})", "Copy it again") from error
        if report["missing_keys"]:  # transformers would fill them with random numbers
            key = sorted(report["missing_keys"])[0]
            raise AnchorEditError(f"the text encoder {folder} lacks {key!r}", "Copy its *.safetensors again")
        if not vocabulary.stat().st_size:  # sentencepiece would accept it
            raise AnchorEditError(f"the vocabulary {vocabulary} is empty", "Copy the spiece.model again")
        try:
            return cls(model.to(device), vocabulary.read_bytes(), text_dim)
        except (OSError, RuntimeError) as error:
            raise AnchorEditError(
                f"the vocabulary {vocabulary} cannot be read", "Copy the spiece.model again"
            ) from error

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Return umT5's ids of each text: its pieces, at most 511, then the end token."""
        pieces = self.pieces.encode([clean_text(text) for text in texts])
        return [ids[: MAX_ROWS - 1] + [END_ID] for ids in pieces]

    def states(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the last hidden states [B, N, D] and the mask [B, N] of the valid rows; other rows are undefined."""
        longest = max(map(len, ids))
        padded = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in ids], device=self.model.device)
        lengths = torch.tensor([len(row) for row in ids], device=self.model.device)
        mask = torch.arange(longest, device=self.model.device) < lengths[:, None]  # [B, N]
        return self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state, mask

    @torch.no_grad()
    def encode(self, texts: list[str]) -> list[Tensor]:
        """Return the valid rows of each text, [n, W] float32 on the encoder's device.

        "" gives one row, the end token's.
        """
        ids = self.tokenise(texts)
        rows = []
        for start in range(0, len(ids), ENCODE_BATCH):
            states, mask = self.states(ids[start : start + ENCODE_BATCH])
            states = F.pad(states.float(), (0, self.text_dim - states.shape[-1]))  # [B, N, D] -> [B, N, W]
            rows += [state[valid] for state, valid in zip(states, mask, strict=True)]
        return rows

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and spiece.model, each whole or not at all."""
        from safetensors.torch import save

        # transformers and ComfyUI both take the embedding from `shared.weight`; the encoder's is the same tensor.
        weights = {
            key: value.detach().cpu().contiguous()
            for key, value in self.model.state_dict().items()
            if key != "encoder.embed_tokens.weight"
        }
        self.model.config.architectures = ["UMT5EncoderModel"]
        files = {
            "config.json": self.model.config.to_json_string(use_diff=False).encode(),
            "spiece.model": self.vocabulary,
            "model.safetensors": save(weights, metadata={"format": "pt"}),
        }
        for name, content in files.items():
            with atomic_write(Path(folder) / name, "text encoder", make_folder=True) as unfinished:
                unfinished.write_bytes(content)


def clean_text(text: str) -> str:
    """Unescape HTML twice and collapse white space, as Wan does (without ftfy, which is optional there)."""
    return " ".join(html.unescape(html.unescape(text)).split())


def find_encoder(encoder_folder: str | Path, tokenizer_file_or_folder: str | Path | None = None) -> tuple[Path, Path]:
    """Find the folder of an encoder's config.json and weights, and the file of its vocabulary."""
    root = Path(encoder_folder)
    folder = root / "text_encoder" if (root / "text_encoder").is_dir() else root
    if not (folder / "config.json").is_file():
        raise AnchorEditError(
            f"no text encoder at {root}", "Give a folder with config.json, *.safetensors and spiece.model"
        )
    if tokenizer_file_or_folder is not None:
        return folder, _find_vocabulary(Path(tokenizer_file_or_folder))
    return folder, _find_vocabulary(folder, folder.parent / "tokenizer")


def _find_vocabulary(*candidates: Path) -> Path:
    """Find the first spiece.model among files and folders."""
    for candidate in candidates:
        for path in (candidate, candidate / "spiece.model", candidate / "tokenizer" / "spiece.model"):
            if path.is_file():
                return path
    raise AnchorEditError(f"no spiece.model at {candidates[0]}", "Put it there or name the tokenizer's file")
