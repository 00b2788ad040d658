"""The folders of the small VAE and text encoder of a run, and whether their training is finished.

An interrupted training leaves a usable part, so the end of the training writes a file that marks it as finished.
Parts that the config gives need none.
"""

from __future__ import annotations

import time
from pathlib import Path

from anchoredit_model.atomic_write import atomic_write

from ..interrupt import Interrupt

FOLDERS = {"vae": "vae", "text": "text_encoder"}  # under --out, by the command that trains them
_MARK = "finished"


def is_finished(folder: Path) -> bool:
    """Say whether the part in this folder was trained to the end."""
    return (folder / _MARK).is_file()


def mark_finished(folder: Path, finished: bool = True) -> None:
    """Mark the part as finished or unfinished; raise AnchorEditError if the folder cannot be written to."""
    if finished:
        with atomic_write(folder / _MARK, "mark of a finished part") as unfinished:
            unfinished.touch()
    else:
        (folder / _MARK).unlink(missing_ok=True)


def wait_for(folder: Path) -> bool:
    """Wait until another process has finished the part; return False after an interruption.

    Polls the folder: barriers time out after ten or thirty minutes, and training may take longer.
    """
    with Interrupt(single_process=False) as interrupt:
        while not (finished := is_finished(folder)) and not interrupt.requested:
            time.sleep(0.5)
    return finished
