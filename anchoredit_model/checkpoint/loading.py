"""Loading the transformer from whatever file an artist or a trainer has.

outline             what a file is and whether it is complete, by the names of its weights
read_checkpoint     any format -> Checkpoint: weights under Wan's own names, sizes, edit settings
load_transformer    the same -> a CausalWanTransformer, strictly: every weight there, none left over

The formats are listed in formats.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import EditConfig, TransformerConfig
from ..errors import AnchorEditError
from ..networks.transformer import CausalWanTransformer
from .formats import FORMATS, read_raw
from .keymap import wan_weights
from .validation import check_fit, check_names, empty_model, refuse_other_kinds, sizes_of

# How weights without our settings are sampled: as Wan 2.1 itself, which was never trained to edit.
UNDISTILLED = EditConfig(sampler="euler", num_steps=50, shift=8.0, cfg=5.0)

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Checkpoint:
    """Hold what was read: weights under Wan's own names, sizes, edit settings (None: the file has none), format."""

    state_dict: dict[str, Tensor]
    transformer_config: TransformerConfig
    edit_config: EditConfig | None
    format: str


@dataclass(frozen=True)
class Outline:
    """Hold what is known without reading a weight; `wan_file` is one file under Wan's names, as ComfyUI loads it."""

    format: str
    wan_file: bool
    edit_config: EditConfig | None


def outline(path: str | os.PathLike) -> Outline:
    """Describe the file or folder at `path` for a program that loads the weights itself, quantised ones as well.

    Raises AnchorEditError as `read_checkpoint` does, and if weights of a Wan transformer are missing.
    """
    path = Path(path).expanduser()
    raw = read_raw(path)
    weights = wan_weights(raw.weights, str(path))
    refuse_other_kinds(weights, path)
    check_names(weights, str(path))
    wan_file = path.is_file() and raw.files == 1 and FORMATS[raw.format].wan_names
    return Outline(raw.format, wan_file, raw.edit_config)


def read_checkpoint(path: str | os.PathLike, *, num_heads: int | None = None) -> Checkpoint:
    """Read the weights at `path`, a file or a folder of any format.

    Tensors keep the file's dtype and may stay memory-mapped; fp8 ones are turned into bfloat16 here. Sizes come
    from the weights' shapes. The number of heads does not show in them: it is `num_heads` if given, else
    what the file's settings say, else dim // 128.

    Raises AnchorEditError for what is missing, damaged, unknown, not text-to-video, contradicts its own
    settings, or is a pickle with more than tensors in it.
    """
    path = Path(path).expanduser()
    raw = read_raw(path)
    weights = wan_weights(raw.weights, str(path))
    refuse_other_kinds(weights, path)
    declared = raw.declared if num_heads is None else {**raw.declared, "num_heads": num_heads}
    config = sizes_of(weights, declared, path)
    return Checkpoint(_dequantised(weights, path), config, raw.edit_config, raw.format)


def load_transformer(
    path: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    num_heads: int | None = None,
) -> tuple[CausalWanTransformer, EditConfig]:
    """Load the transformer at `path`, in eval mode, and how it edits (`UNDISTILLED` if the file does not say).

    Strict: raises AnchorEditError naming up to five weights that are missing, left over or of a wrong shape.
    On a CPU and in the file's own dtype the weights may stay memory-mapped: do not overwrite the file in place.
    """
    checkpoint = read_checkpoint(path, num_heads=num_heads)
    model = empty_model(checkpoint.transformer_config)
    check_fit(checkpoint.state_dict, model, str(path))
    weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in checkpoint.state_dict.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval(), checkpoint.edit_config or UNDISTILLED


def _dequantised(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Multiply fp8 weights by their scales, as bfloat16.

    ComfyUI's files call the scale of layer.weight `layer.scale_weight` (with a marker `scaled_fp8`) or
    `layer.weight_scale`; scales of inputs matter to fp8 arithmetic only.
    https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md
    """
    scales: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in ("scale_weight", "weight_scale"):
            if tensor.numel() != 1:
                raise AnchorEditError(
                    f"{source} scales {layer} by {tensor.numel()} numbers",
                    "Give the bf16 file, only fp8 with one scale per weight is read",
                )
            scales[f"{layer}.weight"] = tensor.float().reshape(())
        elif leaf not in ("scaled_fp8", "scale_input", "input_scale", "comfy_quant"):
            plain[name] = tensor
    for name, tensor in plain.items():
        if not tensor.is_floating_point():
            raise AnchorEditError(f"{source} holds {name} as {tensor.dtype}, which is not read", "Give the bf16 file")
        if name in scales:
            plain[name] = (tensor.float() * scales[name]).bfloat16()
        elif tensor.dtype in _FP8:
            plain[name] = tensor.bfloat16()
    return plain
