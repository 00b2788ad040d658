"""Nodes for the tests, put into the host beside the pack.

AnchorEditProbe    writes what is on its wires to a file
AnchorEditForeign  another pack's attention: an override and a block hook that leave the numbers as they are
AnchorEditApart    runs the conditions of one call one by one
AnchorEditForget   empties the pack's store of keys and values, and says what it held before and after
AnchorEditFresh    hands on its IMAGE with an empty store: another `session` is another image to the host's cache
AnchorEditCount    counts bytes: of the store, and of what two sessions hold, by the address of the storage
AnchorEditDecodes  a VAE that writes how many latents it has decoded
AnchorEditCrowded  a MODEL whose device has room for one image at a time
AnchorEditExhausted a MODEL whose device has no room from the `first` forward on, so many `times`
AnchorEditRequired writes how many bytes the host keeps free when it loads a MODEL for sampling
misfits            what does not fit
tiny_editors       native editors of random weights
"""

import copy
import json
from pathlib import Path

import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from safetensors.torch import save_file

import nodes

from . import misfits, tiny_editors

CROSS_ROWS = 512  # of the text, which cross-attention sees


class AnchorEditProbe:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"name": ("STRING", {"default": "probe"})},
            "optional": {"session": ("ANCHOR_MEMORY",), "image": ("IMAGE",), "latent": ("LATENT",)},
        }
    )
    RETURN_TYPES = ()
    FUNCTION = "write"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def write(self, name, session=None, image=None, latent=None):
        tensors = {}
        if session is not None:
            turns = session.memory.turns
            tensors["latents"] = torch.stack([turn.latent for turn in turns])
            tensors |= {f"text.{number}": turn.text for number, turn in enumerate(turns)}
        if image is not None:
            tensors["image"] = image
        if latent is not None:
            tensors["latent"] = latent["samples"]
        tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, Path(folder_paths.get_output_directory()) / f"{name}.safetensors")
        return ()


class AnchorEditForeign:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "name": ("STRING",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model, name):
        calls = {"overridden": 0, "hooked": 0, "longest": 0, "queries": 0}

        def attend(attention, q, k, v, *rest, **options):
            calls["overridden"] += 1
            calls["queries"] = max(calls["queries"], q.shape[1])
            if k.shape[1] != CROSS_ROWS:
                calls["longest"] = max(calls["longest"], k.shape[1])
            write_json(name, calls)
            return attention(q, k, v, *rest, **options)

        def enter(args, extra):
            calls["hooked"] += 1
            return extra["original_block"](args)

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attend
        model.set_model_patch_replace(enter, "dit", "double_block", 0)
        return (model,)


class AnchorEditApart:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model):
        model = model.clone()
        model.set_model_unet_function_wrapper(self.one_by_one)
        return (model,)

    @staticmethod
    def one_by_one(apply_model, call):
        sampling = call["timestep"].max() > 0  # at 0 a remembered turn is read, which has no other condition
        assert len(call["input"]) == 1 + sampling, "the host did not send the conditions together"
        options, text = call["c"], call["c"]["c_crossattn"]
        rows = [slice(row, row + 1) for row in range(len(call["input"]))]
        return torch.cat(
            [apply_model(call["input"][n], call["timestep"][n], **{**options, "c_crossattn": text[n]}) for n in rows]
        )


class AnchorEditForget:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"session": ("ANCHOR_MEMORY",), "name": ("STRING",)}})
    RETURN_TYPES = ("ANCHOR_MEMORY",)
    FUNCTION = "forget"
    CATEGORY = "tests"

    def forget(self, session, name):
        before = len(kv_store())
        kv_store().retain([])
        write_json(name, {"before": before, "after": len(kv_store())})
        return (session,)


class AnchorEditFresh:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",), "session": ("STRING",)}})
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "start"
    CATEGORY = "tests"

    def start(self, image, session):
        kv_store().retain([])
        return (image.clone(),)


class AnchorEditCount:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"name": ("STRING",), "one": ("ANCHOR_MEMORY",)},
            "optional": {"two": ("ANCHOR_MEMORY",)},
        }
    )
    RETURN_TYPES = ()
    FUNCTION = "count"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def count(self, name, one, two=None):
        blocks = list(kv_store()._entries.values())
        kept = [tensor for block in blocks for tensor in (*block.keys, *block.values)]
        sessions = [one.memory] if two is None else [one.memory, two.memory]
        latents = [turn.latent for memory in sessions for turn in memory.turns]
        images = [memory.image for memory in sessions]
        figures = {
            "blocks": len(blocks),
            "reported": kv_store().nbytes,
            "kv": storage_bytes(kept),
            "latents": storage_bytes(latents),
            "latent": latents[0].nbytes,
            "image": storage_bytes(images),
        }
        write_json(name, figures)
        return ()


class AnchorEditDecodes:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"vae": ("VAE",), "name": ("STRING",)}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "watch"
    CATEGORY = "tests"

    def watch(self, vae, name):
        counting, counted = copy.copy(vae), {"decoded": 0}

        def decode(latents, *rest, **options):
            counted["decoded"] += len(latents)
            write_json(name, counted)
            return vae.decode(latents, *rest, **options)

        counting.decode = decode
        return (counting,)


class AnchorEditCrowded:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model):
        model = model.clone()
        model.set_model_unet_function_wrapper(self.one_only)
        return (model,)

    @staticmethod
    def one_only(apply_model, call):
        if len(call["input"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return apply_model(call["input"], call["timestep"], **call["c"])


class AnchorEditExhausted:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "first": ("INT", {"min": 1}), "times": ("INT", {})}}
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model, first, times):
        calls = {"all": 0, "failed": 0}

        def fail(apply_model, call):
            calls["all"] += 1
            if calls["all"] >= first and calls["failed"] < times:
                calls["failed"] += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return apply_model(call["input"], call["timestep"], **call["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(fail)
        return (model,)


class AnchorEditRequired:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "name": ("STRING", {"default": "required"})}}
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model, name):
        def watch(executor, patcher, *arguments, **options):
            asked, estimate = [], patcher.model.memory_required

            def memory_required(shape, **conditions):
                asked.append(estimate(shape, **conditions))
                return asked[-1]

            patcher.model.memory_required = memory_required
            try:
                return executor(patcher, *arguments, **options)
            finally:
                del patcher.model.memory_required
                largest = torch.tensor([max(asked)], dtype=torch.float64)
                save_file({"bytes": largest}, Path(folder_paths.get_output_directory()) / f"{name}.safetensors")

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "anchoredit_tests", watch)
        return (model,)


def kv_store():
    return nodes.NODE_CLASS_MAPPINGS["AnchorEditTurn"].runtime.store


def storage_bytes(tensors):
    """Bytes of all storages that these tensors look at, each counted once, by its address."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def write_json(name, figures):
    (Path(folder_paths.get_output_directory()) / f"{name}.json").write_text(json.dumps(figures))


NODES = (
    AnchorEditProbe,
    AnchorEditForeign,
    AnchorEditApart,
    AnchorEditForget,
    AnchorEditFresh,
    AnchorEditCount,
    AnchorEditDecodes,
    AnchorEditCrowded,
    AnchorEditExhausted,
    AnchorEditRequired,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in (*NODES, *misfits.NODES, *tiny_editors.NODES)}
