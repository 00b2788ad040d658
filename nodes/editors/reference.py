"""Editing with native reference latents: the anchor and the newest turns, never decoded and encoded again.

Every family that the host runs with `reference_latents` has a recipe (recipes/). Sampling is the host's own, with
the artist's MODEL and all that is patched into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...anchoredit_model.decoding import check_vae
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.geometry import fit
from ...anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from ...anchoredit_model.memory.kv_size import format_bytes
from ...anchoredit_model.noise import variation_seeds
from ..host.latent_space import SPACES
from ..host.sampling.guiders import Branches, Conditioning, guider_of, sample, sampler_of, sigmas_of
from ..host.sampling.memory_wrapper import without_memory
from ..host.sampling.reference_latents import References, with_references
from ..host.sampling.turn_sampler import TurnNoise
from ..host.ui import on_step
from ..host.vae import HostVAE
from ..host.vram import is_out_of_memory, unload_models
from .base import MASK_KEY, NULL_EDIT, Runtime, SamplerInputs, TurnSettings
from .recipes.registry import recipe_of
from .session import MemorySettings, Networks, Session

_GRID = 2.0**19  # steps of a latent per unit: a turn's rounding of float32 is less than half of one
_NO_TEXT = torch.zeros(0, 1)  # turns keep no embedding: later ones do not need it


def _snapped(latents: Tensor) -> Tensor:
    """Round latents to a grid far finer than an image shows.

    A latent goes to the host's scale and back in every turn; on the grid that rounding cannot add up, so that a turn
    which changes nothing changes no bit.
    """
    return (latents * _GRID).round() / _GRID


class ReferenceEditor:
    """Edit with the latents of earlier turns as references of the host's own model."""

    def __init__(self, runtime: Runtime, networks: Networks, notify: Callable[[str], None]):
        networks.require("model")
        self.runtime = runtime
        self.networks = replace(networks, model=without_memory(networks.model))
        self.notify = notify
        self.recipe = recipe_of(self.networks.model)
        self.space = SPACES[self.recipe.space]

    def start(self, image: Tensor, settings: MemorySettings | None) -> Session:
        """Start a session from a source image [3, H, W]."""
        self.networks.require("clip", "vae")
        self._check_clip()
        if self.recipe.assumption:
            self.notify(self.recipe.assumption)
        height, width = image.shape[-2:]
        geometry = fit(height, width, self.recipe.resolution, self.recipe.size_multiple)
        vae = HostVAE(self.networks.vae, self.space)
        latent = vae.encode(geometry.to_work(image[None]))[0]
        policy, kv_cache = (settings.policy, settings.kv_cache) if settings else (self.recipe.policy, None)
        memory = AnchorMemory.start(latent, _NO_TEXT, image, geometry, policy, kv_cache, vae.latent_space)
        return Session(memory, (self.networks,))

    def turn(self, session: Session, instruction: str, seed: int, settings: TurnSettings) -> Session:
        """Make the next turn."""
        (memory,) = self._run(session.memory, instruction, [seed], settings)
        return session.extended(memory, self.networks)

    def variations(
        self, session: Session, instruction: str, seed: int, count: int, settings: TurnSettings
    ) -> tuple[Session, ...]:
        """Make `count` candidates for the next turn, as one batch where memory allows."""
        memories = self._run(session.memory, instruction, variation_seeds(seed, count), settings)
        return tuple(session.extended(memory, self.networks) for memory in memories)

    def apply_memory(
        self, session: Session, conditioning: Any, seed: int, mask: Tensor | None, errors: Callable
    ) -> SamplerInputs:
        """Prepare the next turn for the host's samplers."""
        memory, recipe = session.memory, self.recipe
        self._check_session(memory)
        shape = memory.turns[-1].latent.shape
        latent = self.space.empty_latent(shape)
        constraint = None if mask is None else memory.mask_constraint(mask)
        references = self._references(memory, self._visible(memory))
        model = self.networks.model
        return SamplerInputs(
            model=with_references(model, references, errors, constraint),
            latent=latent if mask is None else {**latent, MASK_KEY: mask},
            noise=TurnNoise(seed, len(memory), self.space),
            sampler=sampler_of(recipe.sampler),
            sigmas=sigmas_of(model, recipe.scheduler, recipe.steps, shape[-2] * shape[-1]),
        )

    def commit(
        self, session: Session, latent: dict[str, Any], conditioning: Any, instruction: str, mask: Tensor | None
    ) -> Session:
        """Add what the host's samplers made as the next turn. Costs nothing: later turns see the latent itself."""
        memory = session.memory
        self._check_session(memory)
        mask = latent.get(MASK_KEY) if mask is None else mask
        x0 = _snapped(self.space.from_latent(latent).cpu())
        if mask is not None:  # again, as the host's way out of the model's latents and back rounds
            x0 = memory.mask_constraint(mask)(x0)
        turn = Turn(x0, instruction.strip(), _no_text(memory), mask=mask)
        return session.extended(memory.commit(turn, self.recipe.name), self.networks)

    def cost(self, settings: MemorySettings, size: tuple[int, int] | None) -> str:
        """Say how many images turns see and what they hold in memory."""
        recipe = self.recipe
        height, width = size or (recipe.resolution, recipe.resolution)
        work = fit(height, width, recipe.resolution, recipe.size_multiple)
        policy = settings.policy
        seen = min(policy.anchor_frames + policy.window, recipe.max_references)
        factor = self.space.spatial_factor
        each = 4 * self.space.channels * (work.work_height // factor) * (work.work_width // factor)
        return (
            f"At {work.work_width}x{work.work_height}: a turn sees up to {seen} images as references, so {seen + 1} "
            f"times the tokens of one; a turn is kept as {format_bytes(each)}."
        )

    def _run(
        self, memory: AnchorMemory, instruction: str, seeds: Sequence[int], settings: TurnSettings
    ) -> tuple[AnchorMemory, ...]:
        """Make a turn by each of the seeds; when the device is full, one after the other, then with fewer images."""
        self._check_session(memory)
        self._check_clip()
        if not instruction.strip():
            self.notify(NULL_EDIT)
        visible = self._visible(memory)
        fewest = tuple(sorted({visible[0], visible[-1]}, key=visible.index))
        attempts = [([list(seeds)], visible, "")]
        if len(seeds) > 1:
            note = f"Memory does not hold {len(seeds)} images at once: they were sampled one after the other."
            attempts.append(([[seed] for seed in seeds], visible, note))
        if fewest != visible:
            note = f"Out of GPU memory with {len(visible)} images: the turn has seen the first and the newest alone."
            attempts.append(([[seed] for seed in seeds], fewest, note))
        for batches, turns, note in attempts:
            try:
                made = [t for batch in batches for t in self._sample(memory, instruction, batch, turns, settings)]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = str(error)  # the error itself would keep the tensors of the attempt
            else:
                if note:
                    self.notify(note)
                return tuple(memory.commit(turn, self.recipe.name) for turn in made)
            unload_models()
        raise AnchorEditError(
            f"out of memory, also with the first and the newest image alone ({failed[:200]})",
            "See fewer turns by Memory Policy, or start the session from a smaller image",
        )

    def _sample(
        self,
        memory: AnchorMemory,
        instruction: str,
        seeds: Sequence[int],
        visible: Sequence[int],
        settings: TurnSettings,
    ) -> list[Turn]:
        recipe, model, number = self.recipe, self.networks.model, len(memory)
        steps = settings.steps or recipe.steps
        cfg = recipe.cfg if settings.cfg is None else float(settings.cfg)
        constraint = None if settings.mask is None else memory.mask_constraint(settings.mask)
        branches = self._encode(memory, instruction.strip(), visible, cfg)
        patched = with_references(model, self._references(memory, visible), nullcontext, constraint)
        shape = memory.turns[-1].latent.shape
        empty = self.space.empty_latent(shape)
        noise = torch.cat([TurnNoise(seed, number, self.space).generate_noise(empty) for seed in seeds])
        sigmas = sigmas_of(model, recipe.scheduler, steps, shape[-2] * shape[-1])
        show = on_step(model, len(sigmas) - 1, self.space)
        samples = sample(
            guider_of(patched, branches, cfg, recipe.image_cfg),
            noise,
            sampler_of(recipe.sampler),
            sigmas,
            seeds[0],
            lambda step, total, x0: show(step + 1, total, self.space.without_frame_axis(x0)[0]),
        )
        latents = _snapped(self.space.from_socket(samples))
        if not latents.isfinite().all():
            raise AnchorEditError(
                f"turn {number} came out as NaN or infinite (cfg {cfg:g})",
                "Lower cfg, run the model in a wider dtype, or check the weights",
            )
        if constraint is not None:  # again, as the last step and the host's way out of the model's latents round
            latents = constraint(latents)
        noted = {"editor": recipe.name, "sampler": recipe.sampler, "scheduler": recipe.scheduler, "num_steps": steps}
        noted |= {"cfg": cfg, "references": list(visible)}
        return [
            Turn(latent.contiguous(), instruction.strip(), _no_text(memory), seed, noted, settings.mask)
            for latent, seed in zip(latents, seeds)
        ]

    def _encode(self, memory: AnchorMemory, instruction: str, visible: Sequence[int], cfg: float) -> Branches:
        """Encode an instruction and, with guidance, the negative prompt, beside the images that turns show."""
        recipe, clip = self.recipe, self.networks.clip
        images = [self._work_image(memory, turn) for turn in visible] if recipe.sees_images else []

        def encode(text: str, images: Sequence[Tensor] = ()) -> Conditioning:
            return recipe.encode(clip, text, images)

        positive = encode(instruction, images)
        if recipe.image_cfg is not None:
            negative = encode(recipe.negative_text)
            return Branches(positive, negative, middle=negative)
        if cfg == 1:
            return Branches(positive)
        return Branches(positive, encode(recipe.negative_text, images if recipe.negative_sees else ()))

    def _work_image(self, memory: AnchorMemory, turn: int) -> Tensor:
        """Return what a turn's latent shows, [3, h, w], for the text encoder to look at."""
        self.networks.require("vae")
        return self.runtime.work_image(HostVAE(self.networks.vae, self.space), self.networks.vae, memory, turn)

    def _references(self, memory: AnchorMemory, visible: Sequence[int]) -> References:
        latents = [memory.turns[turn].latent for turn in visible]
        return References(latents, self.space, self.recipe.method, self.recipe.guidance)

    def _visible(self, memory: AnchorMemory) -> tuple[int, ...]:
        """Return the turns that the next one sees, in the order of the references."""
        turns = memory.policy.visible(len(memory))
        most = self.recipe.max_references
        if len(turns) > most:
            turns = (*turns[:1], *turns[len(turns) - most + 1 :]) if most > 1 else turns[-1:]
            self.notify(f"{self.recipe.name} takes at most {most} references: the turn sees {_numbers(turns)}.")
        return turns[::-1] if self.recipe.newest_first else turns

    def _check_session(self, memory: AnchorMemory) -> None:
        """Refuse a session whose latents the MODEL does not know."""
        if self.networks.vae is not None:
            check_vae(HostVAE(self.networks.vae, self.space), memory)
        if memory.latent_space != self.space.id:
            raise AnchorEditError(
                f"the session's latents are not those of {self.recipe.name}",
                f"Use an editor of the session's latent space, or start a new session with {self.recipe.name}",
            )

    def _check_clip(self) -> None:
        """Refuse a text encoder of another family."""
        self.networks.require("clip")
        found = type(self.networks.clip.tokenizer).__name__
        if found not in self.recipe.tokenizers:
            raise AnchorEditError(
                f"the CLIP must be that of {self.recipe.name}, got one with {found}", f"Load {self.recipe.clip}"
            )


def _no_text(memory: AnchorMemory) -> Tensor:
    """Return no rows [0, E], as wide as the session's: a file holds those of all turns as one tensor."""
    return memory.turns[0].text[:0]


def _numbers(turns: Sequence[int]) -> str:
    return "the source" if list(turns) == [0] else "turns " + ", ".join(map(str, turns))
