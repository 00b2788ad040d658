"""The studio without files: every batch is drawn and encoded when it is asked for, and none comes twice.

    for batch in LiveStudio(StudioSettings(turns=6), encoders, batch_size=8, rank=rank, world=world):
        ...                                  # {"latents", "texts", "keys"}, as from loader.Loader

For machines on which drawing is cheap beside a training step, such as a GPU. Batch n depends on the seed, n and
the global batch alone, not on how that is shared out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import torch

from .cache import Encoders, encode_pictures, encode_texts
from .encoded import TextTable
from .loader import same_run
from .render import Layer, render
from .studio import sample_sessions
from .studio_source import StudioSettings


class LiveStudio:
    """See above. `position` is the number of the next global batch."""

    def __init__(
        self,
        settings: StudioSettings,
        encoders: Encoders,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        layers: Sequence[Layer] | None = None,
        text_rows: int | None = None,
    ):
        """batch_size: sessions per process. layers: those of `render.compiled_layers`, if any. text_rows: a fixed
        number of rows for texts, for compiled models."""
        self.settings, self.encoders, self.layers, self.text_rows = settings, encoders, layers, text_rows
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.position = 0
        self.texts = TextTable({})

    def __iter__(self) -> Iterator[dict]:
        while True:
            self.position += 1  # before handing out: a state saved after the step is past this batch
            yield self._batch(self.position - 1)

    def state_dict(self) -> dict:
        """The position, and what it is a position in."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on there. Raises AnchorEditError if the settings or the global batch are others."""
        same_run(state, self._identity())
        self.position = state["position"]

    def _identity(self) -> dict:
        return {"studio": asdict(self.settings), "global_batch": self.batch_size * self.world}

    def _batch(self, number: int) -> dict:
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.batch_seed(number))
        count = self.batch_size * self.world
        drawn = sample_sessions(count, settings.turns, generator, star=settings.star)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        pictures = torch.stack(
            [
                render(scenes[mine].to(self.encoders.device), settings.height, settings.width, self.layers)
                for scenes in drawn.scenes
            ],
            dim=1,
        )  # [B, T + 1, 3, H, W]
        latents = encode_pictures(self.encoders.vae, pictures.flatten(0, 1))
        said = [["", *texts] for texts in list(zip(*drawn.texts))[mine]]
        new = sorted({text for texts in said for text in texts if text not in self.texts.states})
        self.texts.states.update(zip(new, encode_texts(self.encoders.text, new)))
        return {
            "latents": latents.unflatten(0, pictures.shape[:2]),
            "texts": self.texts.batch(said, self.text_rows),
            "keys": [f"studio_{settings.seed}_{number}_{place}" for place in range(count)[mine]],
        }
