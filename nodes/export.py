"""Export: every turn as a PNG that opens its workflow."""

import json

from comfy_api.latest import io, ui

from ..anchoredit_model.images import save_image
from ..anchoredit_model.memory.anchor_memory import Turn
from .base import CATEGORY, AnchorEditNode
from .editors.session import Session
from .host.folders import metadata_wanted, new_files
from .host.ui import progress
from .inputs import session_input

CHUNK = "anchoredit"  # the PNG text chunk with what we know of a turn


class ExportTurns(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditExportTurns",
            display_name="AnchorEdit Export Turns",
            category=CATEGORY,
            description="Saves the source and every turn as PNGs in the output folder, with the workflow inside and "
            "each turn's instruction, seed and settings.",
            inputs=[
                session_input("The session to export. It is exported again when it has changed."),
                io.String.Input(
                    "filename_prefix",
                    default="AnchorEdit/edit",
                    tooltip="Name in the output folder; folder/name makes a folder. Every export takes the next "
                    "number: name_00001_turn_000.png is the source, then come the turns. %year% %month% %day% "
                    "%hour% %minute% %second% and %width% %height% of the image are filled in.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def run(cls, session: Session, filename_prefix: str) -> io.NodeOutput:
        memory, decoder = session.memory, cls.runtime.decoder(session)
        decoder.check(memory)
        new = new_files(filename_prefix, memory.image)
        workflow = _workflow(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        saved, image = [], None
        for number, turn in enumerate(memory.turns):
            progress(number, len(memory))
            image = decoder.image(memory, number, image)
            name = f"{new.stem}_{new.number:05}_turn_{number:03}.png"
            chunks = {**workflow, CHUNK: _settings(number, turn)} if metadata_wanted() else {}
            save_image(image, new.folder / name, chunks)
            saved.append(ui.SavedResult(name, new.subfolder, io.FolderType.output))
        progress(len(memory), len(memory))
        return io.NodeOutput(ui=ui.SavedImages(saved))


def _workflow(prompt: dict | None, extra: dict | None) -> dict[str, str]:
    """Return the PNG text chunks by which the host opens the workflow of an image."""
    return {name: json.dumps(value) for name, value in {"prompt": prompt, **(extra or {})}.items() if value}


def _settings(number: int, turn: Turn) -> str:
    return json.dumps({"turn": number, "instruction": turn.instruction, "seed": turn.seed, "settings": turn.settings})
