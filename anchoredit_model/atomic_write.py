"""Writing a file as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import AnchorEditError


@contextlib.contextmanager
def atomic_write(path: Path, what: str, make_folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` when the block ends without an exception.

    Otherwise, also if the process dies, the old file stays. Raises AnchorEditError, in which `what` names the
    file's purpose, if the folder is missing, read-only or full.
    """
    # Beside the target, because only within one file system is a replacement atomic.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        mode = unfinished.stat().st_mode  # as the user's other files; safetensors lets only the owner read its own
        yield unfinished
        unfinished.chmod(mode)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnchorEditError(
            f"{what} '{path}' cannot be written ({reason})", "Choose a folder that exists, is writable and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never created
            unfinished.unlink()
