"""Nodes for the tests, put into the host beside the pack.

AnchorEditProbe    writes what is on its wires to a file
AnchorEditForeign  another pack's attention: an override and a block hook that leave the numbers as they are
AnchorEditApart    runs the conditions of one call one by one
AnchorEditForget   empties the pack's store of keys and values
AnchorEditRequired writes how many bytes the host keeps free when it loads a MODEL for sampling
"""

from pathlib import Path

import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from safetensors.torch import save_file

import nodes


class AnchorEditProbe:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"name": ("STRING", {"default": "probe"})},
            "optional": {"memory": ("ANCHOR_MEMORY",), "image": ("IMAGE",), "latent": ("LATENT",)},
        }
    )
    RETURN_TYPES = ()
    FUNCTION = "write"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def write(self, name, memory=None, image=None, latent=None):
        tensors = {}
        if memory is not None:
            tensors["latents"] = torch.stack([turn.latent for turn in memory.turns])
            tensors |= {f"text.{number}": turn.text for number, turn in enumerate(memory.turns)}
        if image is not None:
            tensors["image"] = image
        if latent is not None:
            tensors["latent"] = latent["samples"]
        tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, Path(folder_paths.get_output_directory()) / f"{name}.safetensors")
        return ()


class AnchorEditForeign:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model):
        model = model.clone()
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda attention, *tensors, **rest: attention(*tensors, **rest)
        model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
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
    INPUT_TYPES = classmethod(lambda cls: {"required": {"memory": ("ANCHOR_MEMORY",)}})
    RETURN_TYPES = ("ANCHOR_MEMORY",)
    FUNCTION = "forget"
    CATEGORY = "tests"

    def forget(self, memory):
        store = nodes.NODE_CLASS_MAPPINGS["AnchorEditTurn"].runtime.store
        assert len(store) > 0
        store.retain([])
        return (memory,)


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


NODES = (AnchorEditProbe, AnchorEditForeign, AnchorEditApart, AnchorEditForget, AnchorEditRequired)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
