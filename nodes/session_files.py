"""Sessions on disk: save one, load one."""

from dataclasses import replace

from comfy_api.latest import io, ui

from ..anchoredit_model.config import MemoryPolicy
from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.memory.anchor_memory import AnchorMemory
from ..anchoredit_model.memory.session_file import check_session, load_session, save_session
from .base import CATEGORY, AnchorEditNode, MemorySocket, PolicySocket, remedies_first, to_host_image
from .host.model import new_files, say, session_files
from .host.paths import SUFFIX

_KEEP, _OVERWRITE = "keep", "overwrite"
_MEGABYTE = 1e6


class SaveSession(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditSaveSession",
            display_name="AnchorEdit Save Session",
            category=CATEGORY,
            description="Writes the session to a file in the output folder. It is small: remembered keys and values "
            "are left out, because they can be made again.",
            inputs=[
                MemorySocket.Input("memory", tooltip="The session to save. It is saved again when it has changed."),
                io.String.Input(
                    "filename_prefix",
                    default="AnchorEdit/session",
                    tooltip="Name in the output folder; folder/name makes a folder. %year% %month% %day% %hour% "
                    "%minute% %second% and %width% %height% of the image are filled in. Costs nothing.",
                ),
                io.Combo.Input(
                    "existing",
                    options=[_KEEP, _OVERWRITE],
                    default=_KEEP,
                    tooltip="What happens to a session that was saved before. keep: every save is a file with the "
                    "next number, name_00001_.safetensors. overwrite: there is one file, name.safetensors, which is "
                    "replaced once the new one is whole.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def run(cls, memory: AnchorMemory, filename_prefix: str, existing: str) -> io.NodeOutput:
        new = new_files(filename_prefix, memory.image)
        name = new.stem + ("" if existing == _OVERWRITE else f"_{new.number:05}_") + SUFFIX
        path = new.folder / name
        if path.exists():
            _check_replaceable(path, new.shown(name))
        save_session(memory, path)
        size = path.stat().st_size / _MEGABYTE
        say(f"Saved up to turn {memory.last}: {new.shown(name)}, {size:.1f} MB", cls.hidden.unique_id)
        return io.NodeOutput(ui={"sessions": [ui.SavedResult(name, new.subfolder, io.FolderType.output)]})


class LoadSession(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadSession",
            display_name="AnchorEdit Load Session",
            category=CATEGORY,
            description="A saved session, to go on with, to go back in or to branch from. The first turn reads what "
            "it sees of the session again, which costs one model pass for each image.",
            inputs=[
                io.Combo.Input(
                    "session",
                    options=session_files().names(),
                    tooltip="A session file in the input folder, or in the output folder, which is said behind its "
                    "name; the newest first. Press R after a new one was saved.",
                ),
                PolicySocket.Input(
                    "policy",
                    optional=True,
                    tooltip="What later turns may see, and how it is kept: on another card, say. Without it: as it "
                    "was saved.",
                ),
            ],
            outputs=[
                MemorySocket.Output(display_name="memory", tooltip="The session as it was saved."),
                io.Image.Output(display_name="source", tooltip="The image that the session began with."),
                io.Int.Output(display_name="turns", tooltip="How many turns the session has."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, session: str | None = None) -> bool | str:
        try:
            with remedies_first():
                if session is not None:  # a link has no value yet
                    check_session(session_files().path(session))
        except AnchorEditError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, session: str, **_) -> str:
        file = session_files().path(session).stat()
        return f"{session} {file.st_mtime_ns} {file.st_size}"

    @classmethod
    def run(cls, session: str, policy: MemoryPolicy | None = None) -> io.NodeOutput:
        memory = load_session(session_files().path(session))
        memory = memory if policy is None else replace(memory, policy=policy)
        size = f"{memory.geometry.input_width}x{memory.geometry.input_height} pixels"
        last = " ".join(memory.turns[-1].instruction.split())
        say(f"{size}, turn {memory.last}{': ' if last else ''}{last}", cls.hidden.unique_id)
        return io.NodeOutput(memory, to_host_image(memory.image), memory.last)


def _check_replaceable(path, shown: str) -> None:
    """Refuses to replace a file that is something else."""
    try:
        check_session(path)
    except AnchorEditError:
        raise AnchorEditError(
            f"{shown} is there and is no session", "Choose another filename_prefix, or remove that file"
        ) from None
