"""The editors by name, and their options on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from anchoredit_model import TINY
from anchoredit_model.config import HISTORIES, MemoryPolicy
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.pipeline import AnchorEditPipeline

from ..suites.base import Suite
from .base import Editor, EditorOptions
from .comfyui import ComfyUIEditor
from .controls import NoOpEditor, OracleEditor, ShuffledEditor
from .folder import FolderEditor
from .pipeline import PREVIOUS_ONLY, BidirectionalEditor, DecodeReencodeEditor, PipelineEditor, transformer_of

DEFAULT_SERVER = "http://127.0.0.1:8188"
TINY_WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "tiny.json"


class EditorEntry(NamedTuple):
    """How an editor is made, and the names of the options it takes."""

    make: Callable[[EditorOptions, Suite], Editor]
    options: tuple[str, ...] = ()


def _on_our_model(
    kind: type[PipelineEditor], options: EditorOptions, suite: Suite, policy: MemoryPolicy | None = None
) -> Editor:
    pipeline = _pipeline(options)
    asked = {name: getattr(options, name) for name in _POLICY_OPTIONS}
    policy = policy or pipeline.default_policy.with_options(**asked)
    return kind(pipeline, policy, options.steps, options.cfg, options.sampling_seed or 0)


def _pipeline(options: EditorOptions) -> AnchorEditPipeline:
    dtype, device = getattr(torch, options.dtype or "float32"), options.device or "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's answer to unknown names and to a missing GPU
        reason = str(error).splitlines()[0]
        raise AnchorEditError(f"device '{device}' cannot be used ({reason})", "Choose cpu, or cuda on a GPU") from None
    pipeline = AnchorEditPipeline.from_pretrained(options.model or TINY, dtype, device)
    if options.slot_mode is None:
        return pipeline
    edit = replace(pipeline.edit, slot_mode=options.slot_mode)
    backbone = TransformerBackbone(transformer_of(pipeline), edit)
    return AnchorEditPipeline(backbone, pipeline.vae, pipeline.text_encoder)


def _comfyui(options: EditorOptions, suite: Suite) -> Editor:
    workflow = options.workflow or TINY_WORKFLOW
    return ComfyUIEditor.open(options.server or DEFAULT_SERVER, workflow, options.sampling_seed or 0)


def _folder(options: EditorOptions, suite: Suite) -> Editor:
    if options.images is None:
        raise AnchorEditError("editor 'folder' needs images", "Give --images DIR, which `benchmark export` has written")
    return FolderEditor(options.images, suite)


_MODEL_OPTIONS = ("model", "steps", "cfg", "dtype", "device", "sampling_seed")
_POLICY_OPTIONS = ("window", "anchor_frames", "history")
EDITORS: Mapping[str, EditorEntry] = {
    "pipeline": EditorEntry(partial(_on_our_model, PipelineEditor), (*_MODEL_OPTIONS, *_POLICY_OPTIONS, "slot_mode")),
    "previous-only": EditorEntry(partial(_on_our_model, PipelineEditor, policy=PREVIOUS_ONLY), _MODEL_OPTIONS),
    "bidirectional": EditorEntry(
        partial(_on_our_model, BidirectionalEditor), (*_MODEL_OPTIONS, "window", "anchor_frames")
    ),
    "decode-reencode": EditorEntry(partial(_on_our_model, DecodeReencodeEditor), _MODEL_OPTIONS),
    "comfyui": EditorEntry(_comfyui, ("server", "workflow", "sampling_seed")),
    "folder": EditorEntry(_folder, ("images",)),
    "oracle": EditorEntry(lambda options, suite: OracleEditor(suite.ground_truth)),
    "no-op": EditorEntry(lambda options, suite: NoOpEditor()),
    "shuffled": EditorEntry(lambda options, suite: ShuffledEditor(suite.ground_truth)),
}


def make_editor(name: str, options: EditorOptions, suite: Suite) -> Editor:
    """Return the editor of this name. Raises AnchorEditError for an option that it does not take."""
    entry = EDITORS[name]
    for option, value in asdict(options).items():
        if value is not None and option not in entry.options:
            flag = "--" + option.replace("_", "-")
            others = ", ".join(other for other, (_, taken) in EDITORS.items() if option in taken)
            raise AnchorEditError(
                f"editor '{name}' does not take {flag} {value}", f"Leave it out, or choose one of {others}"
            )
    return entry.make(options, suite)


def add_sampling_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of how a model samples."""
    parser.add_argument("--steps", type=int, help="sampling steps per turn (default: the model's)")
    parser.add_argument("--cfg", type=float, help="guidance scale, 1 = off (default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(default: float32)")
    parser.add_argument("--device", help="cpu (default) or cuda")


def add_editor_options(parser: argparse.ArgumentParser) -> None:
    """Add --editor and the options of all editors."""
    parser.add_argument("--editor", choices=tuple(EDITORS), default="pipeline", help="(default: pipeline)")
    model = parser.add_argument_group("model", "of pipeline, previous-only, bidirectional and decode-reencode")
    model.add_argument("--model", type=Path, metavar="PATH", help="folder or weights file (default: the bundled model)")
    add_sampling_options(model)
    model.add_argument("--sampling-seed", type=int, help="seed of the noise; the sessions stay the same (default: 0)")
    policy = parser.add_argument_group("memory policy", "what a turn sees; editor pipeline")
    policy.add_argument("--window", type=int, help="number of recent turns (default: the model's)")
    policy.add_argument("--anchor-frames", type=int, help="number of first turns (default: the model's)")
    policy.add_argument("--history", choices=HISTORIES, help="how the K/V of earlier turns are kept (default: stream)")
    policy.add_argument("--slot-mode", choices=("bounded", "absolute"), help="(default: the model's)")
    comfyui = parser.add_argument_group("workflow", "editor comfyui; see benchmark/editors/comfyui.py")
    comfyui.add_argument(
        "--workflow", type=Path, metavar="FILE", help="API format, marked (default: the bundled model)"
    )
    comfyui.add_argument("--server", metavar="URL", help=f"(default: {DEFAULT_SERVER})")
    folder = parser.add_argument_group("images", "editor folder; see `benchmark export --help`")
    folder.add_argument("--images", type=Path, metavar="DIR", help="folder of the edited sessions")


def editor_options(args: argparse.Namespace) -> EditorOptions:
    return EditorOptions(**{field.name: getattr(args, field.name) for field in fields(EditorOptions)})
