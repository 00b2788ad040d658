"""Models: a file of the artist's, one that another node has loaded, and the small one that comes with the pack."""

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..anchoredit_model.config import EditConfig
from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.images import load_image
from ..anchoredit_model.pipeline import TINY
from ..anchoredit_model.samplers import SAMPLERS
from ..anchoredit_model.sampling import describe_sampling, with_steps
from .base import CATEGORY, AnchorEditNode, node_errors, to_host_image
from .host.edit_metadata import EditMetadata, attach_edit_metadata, edit_metadata
from .host.loaders import load_model, model_files, model_path
from .host.wan.bundled import load_bundled
from .inputs import advanced, cfg_input, steps_input

_FROM_FILE, _AS_IT_IS = "from file", "as it is"
SAMPLE = TINY.parent / "assets" / "sample.png"


class LoadModel(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadModel",
            display_name="AnchorEdit Load Model",
            category=CATEGORY,
            description="Loads a Wan 2.1 text-to-video model that was trained to edit, and its edit settings from the "
            "file. What is set here replaces them.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_files(),
                    tooltip="A file in models/diffusion_models: .safetensors of any layout, or a published model.pt.",
                ),
                *_settings(_FROM_FILE, "the file's"),
            ],
            outputs=[io.Model.Output(display_name="MODEL")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        try:
            with node_errors():
                if model_name is not None:  # a link has no value yet
                    model_path(model_name)
        except AnchorEditError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_) -> str:
        file = Path(model_path(model_name)).stat()
        return f"{model_name} {file.st_mtime_ns} {file.st_size}"

    @classmethod
    def run(cls, model_name: str, steps: int, **chosen) -> io.NodeOutput:
        model = load_model(model_path(model_name))
        metadata = edit_metadata(model)
        edit = _changed(metadata.edit, steps, chosen)
        if not metadata.trained:
            cls.text().add(
                f"The file does not say how it edits. It is sampled as plain Wan 2.1: {describe_sampling(edit)}."
            )
        # a file that says nothing leaves the MODEL as it is, so that the shift of a later node counts
        unchanged = edit == metadata.edit
        return io.NodeOutput(model if unchanged else attach_edit_metadata(model, replace(metadata, edit=edit)))


class ModelSettings(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditModelSettings",
            display_name="AnchorEdit Model Settings",
            category=CATEGORY,
            description="Sets how a MODEL from another loader edits: GGUF files, for example, carry no edit settings. "
            "For a model distilled to 4 steps: steps 4, sampler renoise, cfg 1.",
            inputs=[
                io.Model.Input("model", tooltip="Wan 2.1 text-to-video, trained to edit, from any loader."),
                *_settings(_AS_IT_IS, "the MODEL's"),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The same model with these settings.")],
        )

    @classmethod
    def run(cls, model, steps: int, **chosen) -> io.NodeOutput:
        edit = _changed(edit_metadata(model).edit, steps, chosen)
        return io.NodeOutput(attach_edit_metadata(model, EditMetadata(edit, trained=True)))


class LoadTiny(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadTiny",
            display_name="AnchorEdit Load Tiny Model",
            category=CATEGORY,
            description="Loads the small model that comes with AnchorEdit: no download, runs on a CPU. It knows simple "
            "drawings of 128x128 pixels and is there to try things out. Takes 60 MB of memory.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.Vae.Output(display_name="VAE"),
                io.Image.Output(display_name="IMAGE", tooltip="An image of the kind that the model knows."),
            ],
        )

    @classmethod
    def run(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_bundled(), to_host_image(load_image(SAMPLE)))


def _settings(kept: str, whose: str) -> list[io.Input]:
    """Return inputs for how a model edits, each unchanged by default: `kept`, or 0."""
    return [
        steps_input(whose),
        io.Combo.Input(
            "sampler",
            options=[kept, *SAMPLERS],
            default=kept,
            tooltip="The sampler: renoise for models distilled to a few steps, euler for others.",
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=f"The shift of euler's noise levels, 1 (none) to 100; 0 takes {whose}.",
        ),
        cfg_input(whose),
        advanced(
            io.Combo.Input(
                "anchor_prompt",
                options=[kept, "null", "first_prompt", "first_token"],
                default=kept,
                tooltip="The prompt that the source image is encoded with: null for models trained with this project, "
                "first_prompt for published ones.",
            )
        ),
        advanced(
            io.Combo.Input(
                "slot_mode",
                options=[kept, "bounded", "absolute"],
                default=kept,
                tooltip="The temporal positions of visible turns: bounded counts those that are visible, absolute is "
                "the turn number, as in published models.",
            )
        ),
        advanced(
            io.Int.Input(
                "temporal_stride",
                default=0,
                min=0,
                max=64,
                tooltip=f"The RoPE distance of two turns, 1 to 64; 0 takes {whose}, or 4.",
            )
        ),
        advanced(
            io.Int.Input(
                "resolution",
                default=0,
                min=0,
                max=4096,
                tooltip="The working resolution: images are edited at about resolution x resolution pixels; "
                f"0 takes {whose}, or 1024. Time and memory grow at least with its square.",
            )
        ),
        advanced(
            io.Int.Input(
                "max_turns",
                default=0,
                min=0,
                max=64,
                tooltip=f"The longest session of the training, source included, 1 to 64; 0 takes {whose}, or 6. "
                "Without a policy turns see as many.",
            )
        ),
    ]


def _changed(edit: EditConfig, steps: int, chosen: dict) -> EditConfig:
    """Return the settings with what an artist has chosen."""
    edit = replace(edit, **{key: value for key, value in chosen.items() if value not in (_FROM_FILE, _AS_IT_IS, 0)})
    return with_steps(edit, steps or None)
