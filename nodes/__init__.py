"""The nodes.

AnchorEditLoadModel      file -> MODEL: a model that was trained to edit
AnchorEditModelSettings  MODEL -> MODEL: how a model edits that another node has loaded
AnchorEditLoadTiny       -> MODEL, CLIP, VAE, IMAGE: the model that comes with the pack, and an image for it
AnchorEditMemoryPolicy   -> policy: what turns may see
AnchorEditStart          VAE, CLIP, IMAGE -> memory: a session with its anchor
AnchorEditTurn           MODEL, CLIP, VAE, memory, instruction -> memory, IMAGE: one edit
AnchorEditChain          the same for one instruction per line -> memory, IMAGE batch
AnchorEditVariants       the same as several candidates -> candidates, IMAGE batch
AnchorEditPick           candidates, number -> memory, IMAGE: the one to go on with
AnchorEditApplyMemory    MODEL, memory, CONDITIONING -> MODEL, LATENT, NOISE, SAMPLER, SIGMAS: for the host's samplers
AnchorEditCommitTurn     MODEL, memory, LATENT, CONDITIONING -> memory: adds what they made
AnchorEditRewind         memory -> memory: the session as it was after an earlier turn
AnchorEditFilmstrip      VAE, memory -> IMAGE batch: the session on one sheet
AnchorEditDrift          VAE, memory -> IMAGE, table: how far every turn is from the source
AnchorEditSaveSession    memory -> a file in the output folder
AnchorEditLoadSession    a file -> memory, IMAGE, turns: a saved session, to go on with
AnchorEditExportTurns    VAE, memory -> a PNG of every turn, with the workflow inside

load, memory, turn, variants, native, look, session, export   the nodes; base: what they share
runtime                    the pipeline on the host's networks
attention, text, bundled   remembered keys and values in a native forward; a CLIP's rows; the bundled files
images                   the last images that masks were put into
preview                    how often and how large a turn is previewed
places                     where session files and exports lie
needs                      what an old host lacks, said in one line
facts                      what is attached to a MODEL and a VAE
serials                    numbers that name a model and what is patched into it
host                       the only file that touches ComfyUI's internals
"""

from .host.requirements import check_host

check_host()  # before anything of the host is imported

from comfy_api.latest import ComfyExtension, io

from .base import AnchorEditNode
from .custom_sampling import ApplyMemory, CommitTurn
from .editors.causal_wan import Runtime
from .export import ExportTurns
from .load import LoadModel, LoadTiny, ModelSettings
from .session_files import LoadSession, SaveSession
from .start import Policy, Rewind, Start
from .turn import Chain, Turn
from .variations import Pick, Variants
from .viewers import Drift, Filmstrip

NODES = (
    *(LoadModel, ModelSettings, LoadTiny, Policy, Start, Turn, Chain, Variants, Pick, ApplyMemory, CommitTurn, Rewind),
    *(Filmstrip, Drift, SaveSession, LoadSession, ExportTurns),
)


class AnchorEditExtension(ComfyExtension):
    """Holds what outlives a run, and hands it to the nodes."""

    def __init__(self):
        self.runtime = Runtime()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [self._with_runtime(node) for node in NODES]

    def _with_runtime(self, node: type[AnchorEditNode]) -> type[AnchorEditNode]:
        return type(node.__name__, (node,), {"runtime": self.runtime, "__module__": node.__module__})


async def comfy_entrypoint() -> AnchorEditExtension:
    return AnchorEditExtension()
