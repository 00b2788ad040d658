"""The nodes.

AnchorEditLoadModel      file -> MODEL: a model that was trained to edit
AnchorEditModelSettings  MODEL -> MODEL: how a model edits that another node has loaded
AnchorEditLoadTiny       -> MODEL, CLIP, VAE, IMAGE: the bundled model, and an image for it
AnchorEditMemoryPolicy   -> policy: what turns may see
AnchorEditStart          MODEL, CLIP, VAE, IMAGE -> session with its anchor
AnchorEditTurn           session, instruction -> session, IMAGE: one edit
AnchorEditChain          the same for one instruction per line -> session, IMAGE batch
AnchorEditVariations     the same as several candidates -> variations, IMAGE batch
AnchorEditPick           variations, number -> session, IMAGE: the one to continue with
AnchorEditApplyMemory    session, CONDITIONING -> MODEL, LATENT, NOISE, SAMPLER, SIGMAS: for the host's samplers
AnchorEditCommitTurn     session, LATENT, CONDITIONING -> session: adds what they made
AnchorEditRewind         session -> session as it was after an earlier turn
AnchorEditFilmstrip      session -> IMAGE batch: the session on one sheet
AnchorEditDrift          session -> IMAGE, table: how far every turn is from the source
AnchorEditSaveSession    session -> a file in the output folder
AnchorEditLoadSession    a file -> session, IMAGE, turns: to continue
AnchorEditExportTurns    session -> a PNG of every turn, with the workflow inside

base, inputs   what nodes share
editors/       editing backends: how one kind of MODEL edits
host/          the only folder that touches ComfyUI's internals
"""

from .host.requirements import check_host

check_host()  # before anything of the host is imported

from comfy_api.latest import ComfyExtension, io

from .base import AnchorEditNode
from .custom_sampling import ApplyMemory, CommitTurn
from .drift import Drift
from .editors.base import Runtime
from .export import ExportTurns
from .filmstrip import Filmstrip
from .load import LoadModel, LoadTiny, ModelSettings
from .policy import Policy
from .session_files import LoadSession, SaveSession
from .start import Rewind, Start
from .turn import Chain, Turn
from .variations import Pick, Variations

NODES = (
    *(LoadModel, ModelSettings, LoadTiny, Policy, Start, Turn, Chain, Variations, Pick),
    *(ApplyMemory, CommitTurn, Rewind, Filmstrip, Drift, SaveSession, LoadSession, ExportTurns),
)


class AnchorEditExtension(ComfyExtension):
    """Hold what outlives a run, and hand it to the nodes."""

    def __init__(self):
        self.runtime = Runtime()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [self._with_runtime(node) for node in NODES]

    def _with_runtime(self, node: type[AnchorEditNode]) -> type[AnchorEditNode]:
        return type(node.__name__, (node,), {"runtime": self.runtime, "__module__": node.__module__})


async def comfy_entrypoint() -> AnchorEditExtension:
    return AnchorEditExtension()
