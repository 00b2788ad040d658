"""The artist's CLIP as the text encoder of a pipeline.

Legend: N text rows with padding, T valid ones, E text width.
"""

from __future__ import annotations

from torch import Tensor

from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.networks.text_encoder import MAX_ROWS, clean_text


class HostTextEncoder:
    """Encode with the artist's CLIP. Instructions are taken literally: brackets are not weights."""

    def __init__(self, clip):
        self.clip = clip

    def encode(self, texts: list[str]) -> list[Tensor]:
        """Return the valid rows of each text, [T, E] float32."""
        return [self._rows(clean_text(text)) for text in texts]

    def _rows(self, text: str) -> Tensor:
        return _valid_rows(self.clip.encode_from_tokens(self.clip.tokenize(text, disable_weights=True)))


def text_rows(conditioning) -> Tensor:
    """Return the valid rows [T, E] of a CONDITIONING that holds one text."""
    if len(conditioning) != 1:
        raise AnchorEditError(f"the CONDITIONING holds {len(conditioning)} texts", "Connect one CLIP Text Encode")
    rows = _valid_rows(conditioning[0][0])
    if not len(rows):
        raise AnchorEditError("the CONDITIONING is all zeros", "Connect a CLIP Text Encode, empty for a null edit")
    return rows


def _valid_rows(states: Tensor) -> Tensor:
    """Cut states [1, N, E] after the end token; what follows is zero."""
    valid = int(states[0].abs().amax(dim=-1).count_nonzero())
    if valid > MAX_ROWS:
        raise AnchorEditError(f"the instruction has {valid} tokens", f"Shorten it to {MAX_ROWS}")
    return states[0, :valid].float()
