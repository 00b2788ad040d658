"""A hash of a model's weights, for session files and the keys of the K/V cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .keymap import unwrapped_weights

_HASHED_WHOLE = 1 << 20  # bytes; a larger tensor is hashed as its sum and samples
_SAMPLES = 4096  # 8-byte words


def fingerprint(model_or_state_dict: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash the weights' names, shapes, dtypes and values to 64 hex digits; the same on every device.

    Tensors up to 1 MiB are hashed whole. Of a larger one, 4096 evenly spaced 8-byte words are hashed, with the
    sum of all its words as 64-bit integers: exact and independent of order, where a float sum would differ between
    devices. Only an exchange of values between positions that are not sampled goes unseen; no training,
    LoRA merge or damage does that. About 5 GB/s on a CPU.
    """
    if isinstance(model_or_state_dict, nn.Module):
        model_or_state_dict = model_or_state_dict.state_dict()
    weights = unwrapped_weights(model_or_state_dict, "the model")
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        for part in _hashed_parts(tensor.reshape(-1).view(torch.uint8)):  # [bytes]
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _hashed_parts(data: Tensor) -> list[Tensor]:
    """Return the parts of a tensor's bytes [n] that are hashed."""
    if data.numel() <= _HASHED_WHOLE:
        return [data]
    whole = data.numel() - data.numel() % 8
    body = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()  # words must be aligned
    words = body.view(torch.int64)  # [n // 8]
    return [words[:: words.numel() // _SAMPLES], words.sum(), data[whole:]]
