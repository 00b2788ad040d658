"""Training states on disk: everything that training goes on from, written whole or not at all.

A state is a folder `step-00000030` of torch's distributed checkpoint (each process writes its own shards, and
another number of processes can read them) with `progress.json`. It is written under another name and renamed when
it is complete, and only then are older ones removed. No random state is stored: every draw is seeded by its step.

torch reads the table of contents of such a folder with pickle, so resume only folders of your own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from anchoredit_model.errors import AnchorEditError

from .networks import Network

_NAME = re.compile(r"step-(\d+)")


def newest(folder: Path) -> Path | None:
    """Return the last complete state in a folder."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return max(found, default=None, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


class States:
    """The states of one stage in `folder`."""

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder = folder
        self.accelerator = accelerator

    def save(self, networks: Mapping[str, Network], progress: Mapping[str, Any]) -> None:
        """Write the networks and `progress`, which has the `step`; raises AnchorEditError if there is no room."""
        final = self.folder / f"step-{progress['step']:08d}"
        unfinished = self.folder / f".unfinished-{progress['step']:08d}"
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            with _quiet():
                dcp.save(_tensors(networks), checkpoint_id=unfinished)
            if main:
                with open(unfinished / "progress.json", "w", encoding="utf-8") as file:
                    json.dump(progress, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                shutil.rmtree(final, ignore_errors=True)
                unfinished.rename(final)
                for path in self.folder.iterdir():
                    if path != final and (_NAME.fullmatch(path.name) or path.name.startswith(".unfinished-")):
                        shutil.rmtree(path, ignore_errors=True)
        except (OSError, dcp.api.CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = _reason(error)
            raise AnchorEditError(
                f"training state '{final}' cannot be written ({reason})",
                "Make room, or give another --out; the state before is still there",
            ) from error
        self.accelerator.wait_for_everyone()

    def load(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """Read the newest state into the networks; its progress."""
        path = newest(self.folder)
        if path is None:
            raise AnchorEditError(f"nothing to resume in '{self.folder}'", "Start without --resume")
        try:
            progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
            tensors = _tensors(networks)
            with _quiet():
                dcp.load(tensors, checkpoint_id=path)
        except (OSError, ValueError, RuntimeError, dcp.api.CheckpointException) as error:
            raise AnchorEditError(
                f"training state '{path}' cannot be read ({_reason(error)})",
                "Resume with the settings it was made with, or start without --resume",
            ) from error
        for name, network in networks.items():
            set_optimizer_state_dict(network.module, network.optimisers, optim_state_dict=tensors[name]["optimisers"])
        return progress


def _tensors(networks: Mapping[str, Network]) -> dict[str, Any]:
    """Return what is saved, as views of the very tensors in use, so that loading fills them."""
    tensors: dict[str, Any] = {}
    for name, network in networks.items():
        tensors[name] = {
            "weights": {key: parameter.detach() for key, parameter in network.learned().items()},
            "optimisers": get_optimizer_state_dict(network.module, network.optimisers),
        }
        if network.average:
            tensors[name]["average"] = network.average.tensors(network)
    return tensors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that one process needs no process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of each process
    if failures:
        error = next(iter(failures.values()))[0]
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__
