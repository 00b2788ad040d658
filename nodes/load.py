"""Models: a file of the artist's, and the small one that comes with the pack."""

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..anchoredit_model.checkpoint import UNDISTILLED
from ..anchoredit_model.images import load_image
from ..anchoredit_model.pipeline import TINY
from .base import CATEGORY, AnchorEditNode, to_image
from .host import edit_config, load_bundled, load_model, model_files, model_path, say, with_edit_config

_FROM_FILE = "from file"
SAMPLE = TINY.parent / "assets" / "sample.png"


class LoadModel(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadModel",
            display_name="AnchorEdit Load Model",
            category=CATEGORY,
            description="A Wan 2.1 text-to-video model that was trained to edit, with what its file says about how.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_files(),
                    tooltip="A file in models/diffusion_models: .safetensors of any layout, or a published model.pt.",
                ),
                io.Combo.Input(
                    "anchor_text",
                    options=[_FROM_FILE, "null", "first_prompt", "first_token"],
                    default=_FROM_FILE,
                    tooltip="The text that the source picture is read with. null for models trained with this "
                    "project, first_prompt for published ones. Costs nothing.",
                ),
                io.Combo.Input(
                    "slots",
                    options=[_FROM_FILE, "bounded", "absolute"],
                    default=_FROM_FILE,
                    tooltip="How remembered turns are numbered: by their order, or by turn as published models do. "
                    "Costs nothing.",
                ),
                io.Int.Input(
                    "stride",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Distance of two turns in time, 1 to 64; 0 takes the file's, or 4. Costs nothing.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_) -> str:
        file = Path(model_path(model_name)).stat()
        return f"{model_name} {file.st_mtime_ns} {file.st_size}"

    @classmethod
    def run(cls, model_name: str, anchor_text: str, slots: str, stride: int) -> io.NodeOutput:
        model = load_model(model_path(model_name))
        edit = edit_config(model)
        if edit is None:
            say(
                "The file does not say how it edits: it is sampled as plain Wan 2.1, 50 steps with guidance 5.",
                cls.hidden.unique_id,
            )
        chosen = {"anchor_text": anchor_text, "slots": slots, "stride": stride}
        chosen = {key: value for key, value in chosen.items() if value not in (_FROM_FILE, 0)}
        if chosen:
            model = with_edit_config(model, replace(edit or UNDISTILLED, **chosen))
        return io.NodeOutput(model)


class LoadTiny(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadTiny",
            display_name="AnchorEdit Load Tiny Model",
            category=CATEGORY,
            description="The small model that comes with AnchorEdit: no download, runs on a CPU. It knows simple "
            "drawings of 128x128 pixels and is there to try things out. Takes 60 MB of memory.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.Vae.Output(display_name="VAE"),
                io.Image.Output(display_name="IMAGE", tooltip="A picture of the kind that the model knows."),
            ],
        )

    @classmethod
    def run(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_bundled(), to_image(load_image(SAMPLE)))
