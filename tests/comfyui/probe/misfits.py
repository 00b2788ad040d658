"""What does not fit: sessions, texts, VAEs and models of another kind than the session's."""

import copy
from dataclasses import replace

import comfy.sd
import comfy.taesd.taesd


class AnchorEditMisfitMemory:
    """The session with latents of 4 channels, of half the size, of an odd size, or with texts 64 wide."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"session": ("ANCHOR_MEMORY",), "kind": (["channels", "size", "odd size", "text width"],)}
        }
    )
    RETURN_TYPES = ("ANCHOR_MEMORY",)
    FUNCTION = "bend"
    CATEGORY = "tests"

    def bend(self, session, kind):
        bends = {
            "channels": lambda turn: replace(turn, latent=turn.latent[:4].contiguous()),
            "size": lambda turn: replace(turn, latent=turn.latent[:, ::2, ::2].contiguous()),
            "odd size": lambda turn: replace(turn, latent=turn.latent[:, :15, :15].contiguous()),
            "text width": lambda turn: replace(turn, text=turn.text[:, :64].contiguous()),
        }
        memory = session.memory
        bent = replace(memory, turns=tuple(bends[kind](turn) for turn in memory.turns))
        return (replace(session, memory=bent),)


class AnchorEditMisfitClip:
    """The text encoder with rows 64 wide, as one of another model has them."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",)}})
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "narrow"
    CATEGORY = "tests"

    def narrow(self, clip):
        return (_Narrow(clip),)


class _Narrow:
    def __init__(self, clip):
        self.clip = clip

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def encode_from_tokens(self, tokens, **options):
        return self.clip.encode_from_tokens(tokens, **options)[..., :64]

    def encode_from_tokens_scheduled(self, tokens, **options):
        return [[rows[..., :64], rest] for rows, rest in self.clip.encode_from_tokens_scheduled(tokens, **options)]


class AnchorEditMisfitVAE:
    """`SD1`: one of 4 channels, of the host's own kind. `another`: Wan's kind, with latents of other statistics."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"vae": ("VAE",), "kind": (["SD1", "another"],)}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "swap"
    CATEGORY = "tests"

    def swap(self, vae, kind):
        if kind == "SD1":
            weights = comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()
            return (comfy.sd.VAE(sd=weights),)
        other = copy.copy(vae)
        del other.anchoredit  # which says that its latents are the bundled model's
        return (other,)


class AnchorEditMisfitNetworks:
    """The session with another VAE, as Load Session can be given one."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"session": ("ANCHOR_MEMORY",), "vae": ("VAE",)}})
    RETURN_TYPES = ("ANCHOR_MEMORY",)
    FUNCTION = "swap"
    CATEGORY = "tests"

    def swap(self, session, vae):
        return (replace(session, networks=tuple(replace(networks, vae=vae) for networks in session.networks)),)


class AnchorEditEmpty:
    """What a loader gives for a part that its checkpoint lacks, and a CONDITIONING without a text."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("CLIP", "CONDITIONING")
    FUNCTION = "nothing"
    CATEGORY = "tests"

    def nothing(self):
        return (None, [])


NODES = (AnchorEditMisfitMemory, AnchorEditMisfitClip, AnchorEditMisfitVAE, AnchorEditMisfitNetworks, AnchorEditEmpty)
