"""Native image editors of a few million random weights, built of the host's own classes: MODEL, CLIP and VAE.

Nothing is detected or read from files: what the host's loaders do after detection is done here.
"""

from __future__ import annotations

from dataclasses import fields

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.text_encoders.flux
import comfy.text_encoders.llama
import comfy.text_encoders.omnigen2
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import torch

import nodes

_FLUX = {
    "out_channels": 16, "in_channels": 16, "patch_size": 2, "hidden_size": 128, "num_heads": 1, "mlp_ratio": 4.0,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
    "context_in_dim": 64, "vec_in_dim": 32, "guidance_embed": True, "txt_ids_dims": [], "yak_mlp": False,
    "txt_norm": False,
}  # fmt: skip
_FLUX2 = {
    "in_channels": 128, "out_channels": 128, "patch_size": 1, "hidden_size": 128, "num_heads": 1, "mlp_ratio": 3.0,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False,
    "ops_bias": False, "context_in_dim": 96, "vec_in_dim": None, "global_modulation": True, "mlp_silu_act": True,
    "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "guidance_embed": False,
}  # fmt: skip
_QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1,
    "attention_head_dim": 128, "joint_attention_dim": 64,
}  # fmt: skip
_OMNIGEN2 = {
    "image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664], "hidden_size": 120,
    "num_attention_heads": 1, "num_kv_heads": 1, "multiple_of": 64, "num_layers": 2, "num_refiner_layers": 1,
    "patch_size": 2, "in_channels": 16, "out_channels": None, "ffn_dim_multiplier": None, "norm_eps": 1e-5,
    "text_feat_dim": 64, "timestep_scale": 1000.0,
}  # fmt: skip
_LLAMA = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64}


def kontext():
    known = {field.name for field in fields(comfy.ldm.flux.model.FluxParams)}
    config = {"image_model": "flux", **{name: value for name, value in _FLUX.items() if name in known}}
    clip = text_encoder(
        comfy.text_encoders.flux.FluxTokenizer,
        comfy.text_encoders.flux.flux_clip(),
        clip_l_model_config={**_LLAMA, "hidden_size": 32, "num_hidden_layers": 2},
        t5xxl_model_config={"d_model": 64, "d_ff": 64, "d_kv": 32, "num_heads": 2, "num_layers": 2},
    )
    return model("Flux", config), clip, image_vae(16)


def flux2(**more):
    class SmallKlein(comfy.text_encoders.flux.Qwen3_4BModel):
        def __init__(self, **options):
            super().__init__(**{**options, "layer": [0, 1, 2]})

    class Flux2Tokenizer(comfy.text_encoders.flux.KleinTokenizer):
        """Stand for FLUX.2 dev's, whose vocabulary comes inside of its weights."""

    config = {"image_model": "flux2", **_FLUX2, **more}
    clip = text_encoder(
        Flux2Tokenizer if config["guidance_embed"] else comfy.text_encoders.flux.KleinTokenizer,
        comfy.text_encoders.flux.klein_te(),
        qwen3_4b_model_config={**_LLAMA, "hidden_size": 32, "num_hidden_layers": 4},
        qwen3_4b_class=SmallKlein,
    )
    return model("Flux2", config), clip, image_vae(128)


def qwen(**more):
    llama, qwen_vl = comfy.text_encoders.llama, comfy.text_encoders.qwen_vl

    class SmallVision(llama.Qwen25_7BVLI):
        def __init__(self, config, dtype, device, operations):
            torch.nn.Module.__init__(self)
            config = llama.Qwen25_7BVLI_Config(**config)
            self.num_layers = config.num_hidden_layers
            self.model = llama.Llama2_(config, device=device, dtype=dtype, ops=operations)
            self.visual = qwen_vl.Qwen2VLVisionTransformer(
                hidden_size=64, output_hidden_size=config.hidden_size, intermediate_size=64, num_heads=2, num_layers=2,
                device=device, dtype=dtype, ops=operations,
            )  # fmt: skip
            self.dtype = dtype

    class SmallText(comfy.text_encoders.qwen_image.Qwen25_7BVLIModel):
        def __init__(self, **options):
            original = llama.Qwen25_7BVLI
            llama.Qwen25_7BVLI = SmallVision
            try:
                super().__init__(**options)
            finally:
                llama.Qwen25_7BVLI = original

    clip = text_encoder(
        comfy.text_encoders.qwen_image.QwenImageTokenizer,
        comfy.text_encoders.qwen_image.te(),
        qwen25_7b_model_config={**_LLAMA, "hidden_size": 64, "num_hidden_layers": 2},
        qwen25_7b_class=SmallText,
    )
    return model("QwenImage", {**_QWEN, **more}), clip, wan_vae()


def omnigen2():
    clip = text_encoder(
        comfy.text_encoders.omnigen2.Omnigen2Tokenizer,
        comfy.text_encoders.omnigen2.te(),
        qwen25_3b_model_config={**_LLAMA, "hidden_size": 64, "num_hidden_layers": 2},
    )
    return model("Omnigen2", _OMNIGEN2), clip, image_vae(16)


FAMILIES = {
    "qwen": qwen,
    "kontext": kontext,
    "omnigen2": omnigen2,
}
if hasattr(comfy.supported_models, "Flux2"):  # of newer hosts
    FAMILIES |= {
        "qwen2511": lambda: qwen(default_ref_method="index_timestep_zero"),
        "klein": flux2,
        "flux2": lambda: flux2(guidance_embed=True),
    }


class AnchorEditTinyEditor:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"family": (list(FAMILIES),)}, "optional": {"resolution": ("INT", {"default": 128})}}
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "build"
    CATEGORY = "tests"

    def build(self, family, resolution=128):
        model, clip, vae = FAMILIES[family]()
        model.set_attachments("anchoredit_recipe", {"resolution": resolution})
        return model, clip, vae


class AnchorEditEcho:
    """A MODEL that predicts its first reference, whatever it is asked."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model):
        model = model.clone()
        model.set_model_unet_function_wrapper(self.first_reference)
        return (model,)

    @staticmethod
    def first_reference(apply_model, call):
        return call["c"]["ref_latents"][0][:1].expand(call["input"].shape).to(call["input"])


def model(kind, config):
    config = getattr(comfy.supported_models, kind)(dict(config))
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "")
    fill(base.diffusion_model, 1)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    management = comfy.model_management
    return patcher(
        base.eval(), load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def text_encoder(tokenizer, encoder, **options):
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **options})
    fill(clip.cond_stage_model, 2)
    return clip


def image_vae(channels):
    weights = comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict()
    if channels == 128:
        vae = comfy.sd.VAE(sd=weights, metadata={"tae_latent_channels": 128}, dtype=torch.float32)
        vae.downscale_ratio = vae.upscale_ratio = 16
    else:
        vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    fill(vae.first_stage_model, 3)
    return vae


def wan_vae():
    _, _, vae, _ = nodes.NODE_CLASS_MAPPINGS["AnchorEditLoadTiny"].execute().args
    del vae.anchoredit  # its own statistics: here it stands for Qwen's
    return vae


def fill(network, seed):
    """Fill weights: the host leaves them uninitialised. Norms of q and k have gains that let references show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim >= 2:
                drawn = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
            elif "norm" in name and not name.endswith("bias"):
                q_or_k = any(part in name for part in ("norm_q", "norm_k", "query_norm", "key_norm", "norm_added"))
                drawn = torch.full(weight.shape, 1.6 if q_or_k else 1.0)
            elif name.endswith(("scale", "weight")):
                drawn = torch.ones(weight.shape)
            else:
                drawn = 0.1 * torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn)


NODES = (AnchorEditTinyEditor, AnchorEditEcho)
