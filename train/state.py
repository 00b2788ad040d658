"""Training states on disk: everything needed to resume, written atomically.

A state is a folder `step-00000030`: a distributed checkpoint of torch (each process writes its own shards, and another
number of processes can read them) and `progress.json`. It is written under another name and renamed when complete; only
then are older ones removed. No state of a random generator is stored: all random numbers are seeded by their step.

torch reads the metadata of such a folder with pickle, so resume only from folders of your own.
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

from accelerate import Accelerator
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from anchoredit_model.errors import AnchorEditError

from .networks import TrainableNetwork

_NAME = re.compile(r"step-(\d+)")


def latest_state(folder: Path) -> Path | None:
    """Return the last complete state in a folder."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


class States:
    """Save and load the training states of one stage in `folder`."""

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder = folder
        self.accelerator = accelerator

    def save(self, networks: Mapping[str, TrainableNetwork], progress: Mapping[str, Any]) -> None:
        """Write the networks and `progress`, which has the `step`; raise AnchorEditError if the disk is full."""
        final = self.folder / f"step-{progress['step']:08d}"
        unfinished = self.folder / f".unfinished-{progress['step']:08d}"
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            with _quiet():
                save(_tensors(networks), checkpoint_id=unfinished)
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
        except (OSError, CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = _reason(error)
            raise AnchorEditError(
                f"training state '{final}' cannot be written ({reason})",
                "Free disk space, or give another --out; the state before is still there",
            ) from error
        self.accelerator.wait_for_everyone()

    def load(self, networks: Mapping[str, TrainableNetwork]) -> dict[str, Any]:
        """Read the latest state into the networks and return its progress."""
        path = latest_state(self.folder)
        if path is None:
            raise AnchorEditError(f"'{self.folder}' has no state to resume from", "Start without --resume")
        try:
            progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
            tensors = _tensors(networks)
            with _quiet():
                load(tensors, checkpoint_id=path)
        except (OSError, ValueError, RuntimeError, CheckpointException) as error:
            raise AnchorEditError(
                f"training state '{path}' cannot be read ({_reason(error)})",
                "Resume with the settings it was made with, or start without --resume",
            ) from error
        for name, network in networks.items():
            set_optimizer_state_dict(network.module, network.optimisers, optim_state_dict=tensors[name]["optimisers"])
        return progress


def _tensors(networks: Mapping[str, TrainableNetwork]) -> dict[str, Any]:
    """Return what is saved, as views of the tensors in use, so that loading fills them."""
    tensors: dict[str, Any] = {}
    for name, network in networks.items():
        tensors[name] = {
            "weights": {key: parameter.detach() for key, parameter in network.trainable().items()},
            "optimisers": get_optimizer_state_dict(network.module, network.optimisers),
        }
        if network.ema:
            tensors[name]["average"] = network.ema.parameters(network)
    return tensors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of each process
    if failures:
        error = next(iter(failures.values()))[0]
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__
