"""The small VAE and text encoder of a run: where they lie, and whether their training came to its end.

Both are used as soon as they are there, so a file that only the end of their training writes tells a finished one
from what an interrupted run had saved so far. Parts that the config gives need none.
"""

from __future__ import annotations

import time
from pathlib import Path

from anchoredit_model.atomic_write import atomic_write

from ..interrupt import Interrupt

FOLDERS = {"vae": "vae", "text": "text_encoder"}  # under --out, by the command that trains them
_MARK = "finished"


def is_finished(folder: Path) -> bool:
    """Whether the part in this folder was trained to the end."""
    return (folder / _MARK).is_file()


def mark_finished(folder: Path, finished: bool = True) -> None:
    """Say so, or take it back. Raises AnchorEditError if the folder cannot be written to."""
    if finished:
        with atomic_write(folder / _MARK, "mark of a finished part") as unfinished:
            unfinished.touch()
    else:
        (folder / _MARK).unlink(missing_ok=True)


def wait_for(folder: Path) -> bool:
    """Wait until another process has finished the part; False if this one is asked to end.

    By looking, as the processes' barriers give up after ten minutes or thirty, and training may take longer.
    """
    with Interrupt(alone=False) as interrupt:
        while not (finished := is_finished(folder)) and not interrupt.asked:
            time.sleep(0.5)
    return finished
