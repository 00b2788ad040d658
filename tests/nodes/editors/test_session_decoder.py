"""The cache of decoded images: two entries, released with their turn or VAE; masked turns decode no turn twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack import pack_module

from anchoredit_model.errors import AnchorEditError

module = pack_module("nodes.editors.session_decoder")
geometry = pack_module("anchoredit_model.geometry")
memories = pack_module("anchoredit_model.memory.anchor_memory")


class Thing:
    pass


def test_cache_keeps_the_two_last_used_images_per_turn_and_vae():
    cache, vae, turns = module.DecodeCache(), Thing(), [Thing() for _ in range(3)]
    images = [torch.zeros(3, 2, 2) + number for number in range(3)]
    for turn, image in zip(turns[:2], images):
        cache.put(turn, vae, image)
    assert cache.get(turns[0], vae) is images[0] and cache.get(turns[0], Thing()) is None
    cache.put(turns[2], vae, images[2])
    assert [cache.get(turn, vae) for turn in turns] == [images[0], None, images[2]]


def test_cached_images_are_released_with_their_turn_or_vae():
    cache, vaes, turns = module.DecodeCache(), [Thing(), Thing()], [Thing(), Thing()]
    for turn, vae in zip(turns, vaes):
        cache.put(turn, vae, torch.zeros(3, 2, 2))
    del turn, vae, turns[0]
    assert len(cache) == 1
    del vaes[1]
    assert len(cache) == 0


class CountingVAE:
    """Latents are images shrunk by 8, and every decoding is counted."""

    spatial_factor, latent_channels, latent_space = 8, 3, "thumbnails"

    def __init__(self):
        self.decoded = 0

    def decode(self, latents):
        self.decoded += len(latents)
        return latents.repeat_interleave(8, -1).repeat_interleave(8, -2).clamp(0, 1)


def masked_session(turns: int):
    """A session of 32x32 whose turns are all masked."""
    memory = memories.AnchorMemory.start(
        torch.rand(3, 4, 4), torch.zeros(1, 2), torch.rand(3, 32, 32), geometry.fit_into(32, 32, 32, 32)
    )
    memory = replace(memory, latent_space="thumbnails")
    for number in range(turns):
        mask = torch.zeros(1, 32, 32)
        mask[:, 8 * (number % 3) : 8 * (number % 3) + 8] = 1
        memory = memory.commit(memories.Turn(torch.rand(3, 4, 4), "", torch.zeros(1, 2), mask=mask))
    return memory


def test_a_masked_chain_decodes_every_turn_once():
    vae, key, cache, memory = CountingVAE(), Thing(), module.DecodeCache(), masked_session(6)
    images = module.SessionDecoder(vae, key, cache)
    shown = [images.image(memory.rewind(turn)) for turn in range(1, 7)]
    assert vae.decoded == 6
    fresh = module.SessionDecoder(vae, Thing(), module.DecodeCache())
    assert fresh.image(memory).equal(shown[-1])


def test_a_session_of_another_latent_space_is_refused():
    memory = replace(masked_session(1), latent_space="another")
    images = module.SessionDecoder(CountingVAE(), Thing(), module.DecodeCache())
    with pytest.raises(Exception, match="another VAE") as caught:
        images.image(memory)
    assert type(caught.value).__name__ == AnchorEditError.__name__
