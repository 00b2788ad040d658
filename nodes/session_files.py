"""Sessions on disk: save one, load one."""

from comfy_api.latest import io, ui

from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.memory.session_file import check_session, load_session, save_session
from .base import CATEGORY, AnchorEditNode, PolicySocket, SessionSocket, node_errors, to_host_image
from .editors.session import MemorySettings, Networks, Session, loaded_session
from .host.folders import new_files, session_files
from .host.paths import SUFFIX
from .inputs import session_input

_KEEP, _OVERWRITE = "keep", "overwrite"
_MEGABYTE = 1e6


class SaveSession(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditSaveSession",
            display_name="AnchorEdit Save Session",
            category=CATEGORY,
            description="Writes the session to a file in the output folder. It is small: keys and values are left "
            "out, because they can be computed again, and it holds no model.",
            inputs=[
                session_input("The session to save. It is saved again when it has changed."),
                io.String.Input(
                    "filename_prefix",
                    default="AnchorEdit/session",
                    tooltip="Name in the output folder; folder/name makes a folder. %year% %month% %day% %hour% "
                    "%minute% %second% and %width% %height% of the image are filled in.",
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
    def run(cls, session: Session, filename_prefix: str, existing: str) -> io.NodeOutput:
        memory = session.memory
        new = new_files(filename_prefix, memory.image)
        name = new.stem + ("" if existing == _OVERWRITE else f"_{new.number:05}_") + SUFFIX
        path = new.folder / name
        if path.exists():
            _check_replaceable(path, new.shown(name))
        save_session(memory, path)
        size = path.stat().st_size / _MEGABYTE
        cls.text().add(f"Saved up to turn {memory.last}: {new.shown(name)}, {size:.1f} MB")
        return io.NodeOutput(ui={"sessions": [ui.SavedResult(name, new.subfolder, io.FolderType.output)]})


class LoadSession(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditLoadSession",
            display_name="AnchorEdit Load Session",
            category=CATEGORY,
            description="Loads a saved session, to continue, rewind or branch. Connect MODEL, CLIP "
            "and VAE for the next turns; to look at it the VAE is enough.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=session_files().names(),
                    tooltip="A session file from the input folder, or from the output folder, as its name says; the "
                    "newest first. Press R after a new one was saved.",
                ),
                io.Model.Input("model", optional=True, tooltip="The diffusion model for the next turns."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder that the model was trained with."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE that the session was started with."),
                PolicySocket.Input(
                    "policy",
                    optional=True,
                    tooltip="What later turns may see, and where it lies: on another card, say. Without it: as saved.",
                ),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The session as it was saved."),
                io.Image.Output(display_name="source", tooltip="The image that the session began with."),
                io.Int.Output(display_name="turns", tooltip="The number of turns in the session."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        try:
            with node_errors():
                if file is not None:  # a link has no value yet
                    check_session(session_files().path(file))
        except AnchorEditError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_) -> str:
        status = session_files().path(file).stat()
        return f"{file} {status.st_mtime_ns} {status.st_size}"

    @classmethod
    def run(cls, file: str, model=None, clip=None, vae=None, policy: MemorySettings | None = None) -> io.NodeOutput:
        memory = load_session(session_files().path(file))
        session = loaded_session(memory, Networks(model, clip, vae)).with_settings(policy)
        size = f"{memory.geometry.input_width}x{memory.geometry.input_height} pixels"
        last = " ".join(memory.turns[-1].instruction.split())
        cls.text().add(f"{size}, turn {memory.last}{': ' if last else ''}{last}")
        return io.NodeOutput(session, to_host_image(memory.image), memory.last)


def _check_replaceable(path, shown: str) -> None:
    """Refuse to replace a file that is something else."""
    try:
        check_session(path)
    except AnchorEditError:
        raise AnchorEditError(
            f"{shown} exists and is not a session", "Choose another filename_prefix, or remove that file"
        ) from None
