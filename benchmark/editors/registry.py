"""The editors by name. Another one is a subclass of `Editor` and a line in `EDITORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from anchoredit_model import TINY
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.pipeline import AnchorEditPipeline

from ..suites.base import Suite
from .base import Editor, EditorOptions
from .comfyui import ComfyUIEditor
from .controls import NoOpEditor, OracleEditor, ShuffledEditor
from .folder import FolderEditor
from .pipeline import PREVIOUS_ONLY, BidirectionalEditor, DecodeReencodeEditor, PipelineEditor

DEFAULT_SERVER = "http://127.0.0.1:8188"
TINY_WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "tiny.json"


def _pipeline(options: EditorOptions) -> AnchorEditPipeline:
    dtype, device = getattr(torch, options.dtype or "float32"), options.device or "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch says of other names, and of a GPU that is not there
        reason = str(error).splitlines()[0]
        raise AnchorEditError(f"device '{device}' cannot be used ({reason})", "Choose cpu, or cuda on a GPU") from None
    pipeline = AnchorEditPipeline.from_pretrained(options.model or TINY, dtype, device)
    if options.slots is None:
        return pipeline
    edit = replace(pipeline.edit, slot_mode=options.slots)
    backbone = TransformerBackbone(pipeline.backbone.transformer, edit)
    return AnchorEditPipeline(backbone, pipeline.vae, pipeline.text_encoder)


def _anchored(options: EditorOptions, suite: Suite) -> Editor:
    return _with_policy(PipelineEditor, options)


def _bidirectional(options: EditorOptions, suite: Suite) -> Editor:
    return _with_policy(BidirectionalEditor, options)


def _with_policy(kind: type[PipelineEditor], options: EditorOptions) -> Editor:
    pipeline = _pipeline(options)
    policy = pipeline.default_policy.with_options(**{name: getattr(options, name) for name in _POLICY_OPTIONS})
    return kind(pipeline, policy, *_sampling(options))


def _previous_only(options: EditorOptions, suite: Suite) -> Editor:
    return PipelineEditor(_pipeline(options), PREVIOUS_ONLY, *_sampling(options))


def _decode_reencode(options: EditorOptions, suite: Suite) -> Editor:
    pipeline = _pipeline(options)
    return DecodeReencodeEditor(pipeline, pipeline.default_policy, *_sampling(options))


def _sampling(options: EditorOptions) -> tuple[int | None, float | None, int]:
    return options.steps, options.guidance, options.sampling_seed or 0


def _comfyui(options: EditorOptions, suite: Suite) -> Editor:
    workflow = options.workflow or TINY_WORKFLOW
    return ComfyUIEditor.open(options.server or DEFAULT_SERVER, workflow, options.sampling_seed or 0)


def _folder(options: EditorOptions, suite: Suite) -> Editor:
    if options.images is None:
        raise AnchorEditError("editor 'folder' needs images", "Give --images DIR, which `benchmark export` has written")
    return FolderEditor(options.images, suite)


_POLICY_OPTIONS = ("window", "anchor_frames", "history")
_MODEL_OPTIONS = ("model", "steps", "guidance", "dtype", "device", "sampling_seed")
# How an editor is made, and which options it takes.
EDITORS: Mapping[str, tuple[Callable[[EditorOptions, Suite], Editor], tuple[str, ...]]] = {
    "pipeline": (_anchored, (*_MODEL_OPTIONS, *_POLICY_OPTIONS, "slots")),
    "previous-only": (_previous_only, _MODEL_OPTIONS),
    "bidirectional": (_bidirectional, (*_MODEL_OPTIONS, "window", "anchor_frames")),
    "decode-reencode": (_decode_reencode, _MODEL_OPTIONS),
    "comfyui": (_comfyui, ("server", "workflow", "sampling_seed")),
    "folder": (_folder, ("images",)),
    "oracle": (lambda options, suite: OracleEditor(suite.drawn), ()),
    "no-op": (lambda options, suite: NoOpEditor(), ()),
    "shuffled": (lambda options, suite: ShuffledEditor(suite.drawn), ()),
}


def make_editor(name: str, options: EditorOptions, suite: Suite) -> Editor:
    """Return the editor of this name; an option that it has no use for is an error, lest a table claim it."""
    make, takes = EDITORS[name]
    for option, value in asdict(options).items():
        if value is not None and option not in takes:
            flag = "--" + option.replace("_", "-")
            fit = ", ".join(other for other, (_, taken) in EDITORS.items() if option in taken)
            raise AnchorEditError(
                f"editor '{name}' does not take {flag} {value}", f"Leave it out, or choose one of {fit}"
            )
    return make(options, suite)
