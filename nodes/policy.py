"""What turns may see of a session, and where that lies."""

import torch
from comfy_api.latest import io

from ..anchoredit_model.config import HISTORIES, KV_DEVICES, KV_DTYPES, KVCacheConfig, MemoryPolicy, TransformerConfig
from ..anchoredit_model.memory.kv_size import kv_size
from .base import CATEGORY, AnchorEditNode, PolicySocket
from .editors.session import MemorySettings, Networks
from .inputs import advanced


class Policy(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        policy, cache = MemoryPolicy(), KVCacheConfig()
        return io.Schema(
            node_id="AnchorEditMemoryPolicy",
            display_name="AnchorEdit Memory Policy",
            category=CATEGORY,
            description="Says what the next turn may see of the session, and shows what that costs in memory.",
            inputs=[
                io.Int.Input(
                    "anchor_frames",
                    default=policy.anchor_frames,
                    min=0,
                    max=16,
                    tooltip="The number of first turns that every turn sees, 0 to 16; 1 is the source image. Each "
                    "costs the keys and values of one image, and a little time per step.",
                ),
                io.Int.Input(
                    "window",
                    default=policy.window,
                    min=0,
                    max=64,
                    tooltip="The number of newest turns that a turn sees, 0 to 64. Each costs as much as an "
                    "anchor frame.",
                ),
                advanced(
                    io.Combo.Input(
                        "history",
                        options=list(HISTORIES),
                        default=policy.history,
                        tooltip="stream: a turn's keys and values stay as they were computed when it was made. "
                        "refresh: those of visible turns are computed again when the window moves, one model pass "
                        "each.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "kv_device",
                        options=list(KV_DEVICES),
                        default=cache.device,
                        tooltip="Where keys and values lie; never changes an image. gpu: where the model runs. cpu: "
                        "system RAM, copied once per step. auto: the GPU while they fit beside the model.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "kv_dtype",
                        options=list(KV_DTYPES),
                        default=cache.dtype,
                        tooltip="The number format of keys and values. auto: the model's own, exact. bfloat16, "
                        "float16: 2 bytes, rounded. float8_e4m3fn: 1 byte, about 3 % error. Changes images slightly.",
                    )
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will edit, to show its cost on this node. Changes nothing else.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image that will be edited, to count the cost at its size. Without it: the size that "
                    "the model was trained at.",
                ),
            ],
            outputs=[PolicySocket.Output(display_name="policy")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(
        cls, anchor_frames: int, window: int, history: str, kv_device: str, kv_dtype: str, model=None, image=None
    ) -> io.NodeOutput:
        settings = MemorySettings(MemoryPolicy(anchor_frames, window, history), KVCacheConfig(kv_device, kv_dtype))
        if model is None:
            cls.text().add(_cost_of_wan(settings))
        else:
            size = None if image is None else tuple(image.shape[1:3])
            cls.text().add(cls.editor_for(Networks(model)).cost(settings, size))
        return io.NodeOutput(settings)


def _cost_of_wan(settings: MemorySettings) -> str:
    """Say what turns cost with the two released sizes of Wan 2.1."""
    dtype = settings.kv_cache.dtype
    itemsize = 2 if dtype == "auto" else getattr(torch, dtype).itemsize
    sizes = {name: TransformerConfig.named(name) for name in ("1.3B", "14B")}
    costs = [
        f"Wan {name}: {kv_size(size, settings.policy, 1024, 1024, itemsize).describe('memory')}"
        for name, size in sizes.items()
    ]
    return f"At 1024x1024, {itemsize} bytes per number. {'; '.join(costs)}. Connect a model to count its own."
