"""Paths of the artist's files: inside the host's input and output folders, and nowhere else.

Names are relative to one of the two; those in the output folder end in ` [output]`, as the host marks them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.memory.session_file import begins_as_session

SUFFIX = ".safetensors"
_IN_OUTPUT = " [output]"
# Names that Windows keeps for devices, with any extension, and characters that it allows in no name.
_DEVICES = {*"CON PRN AUX NUL CONIN$ CONOUT$".split(), *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
_NOT_IN_NAMES = {*'<>:"|?*', *map(chr, range(32))}


@dataclass(frozen=True)
class NewFiles:
    """Say where a node writes: `number` is the next one that is free for `stem` in `folder`.

    `subfolder` is the folder by its name within the output folder.
    """

    folder: Path
    subfolder: str
    stem: str
    number: int

    def shown(self, name: str) -> str:
        """Name a file of this folder as the artist knows it."""
        return (Path("output") / self.subfolder / name).as_posix()


@dataclass(frozen=True)
class SessionFiles:
    """Find session files in the host's two folders, at any depth."""

    input: Path
    output: Path

    def names(self) -> list[str]:
        """List all of them, the newest first. Hosts ask several times per run, so this is quick."""
        found = [*_sessions_in(self.input, ""), *_sessions_in(self.output, _IN_OUTPUT)]
        return [name for _, name in sorted(found, reverse=True)]

    def path(self, name: str) -> Path:
        """Return the path of an existing session file."""
        folder = self.output if name.endswith(_IN_OUTPUT) else self.input
        plain = name.removesuffix(_IN_OUTPUT)
        check_relative(plain, f"session '{name}'")
        path = folder / plain
        if not os.path.isfile(path):  # which takes names of any length
            raise AnchorEditError(f"session file '{name}' does not exist", "Press R and choose one of the list")
        if not path.resolve().is_relative_to(folder.resolve()):  # a link to elsewhere
            raise _outside(f"session '{name}'")
        return path


def check_relative(name: str, what: str) -> None:
    """Refuse a name that is empty or leads out of the folder it is meant for, whatever the system."""
    path = PureWindowsPath(name)  # knows drives and both kinds of separators
    if path.anchor or ".." in path.parts:
        raise _outside(what)
    if not path.name or "\0" in name:
        raise AnchorEditError(f"{what} must be a file name", "Give a name, or folder/name")


def check_new(name: str, what: str) -> None:
    """Refuse a name that leads out of its folder, or that Windows cannot store: sessions go from system to system."""
    check_relative(name, what)
    for part in PureWindowsPath(name).parts:
        if part.split(".")[0].rstrip().upper() in _DEVICES:
            raise AnchorEditError(f"{what} must not be the name of a device of Windows", "Choose another name")
        if part != part.rstrip(". ") or _NOT_IN_NAMES & set(part):
            raise AnchorEditError(
                f'{what} must not have < > : " | ? * in it, nor a dot or space at the end', "Choose another name"
            )


def _outside(what: str) -> AnchorEditError:
    return AnchorEditError(f"{what} leads out of ComfyUI's folders", "Give a name inside them, such as folder/name")


def _sessions_in(folder: Path, mark: str) -> Iterator[tuple[float, str]]:
    """Yield when each session below `folder` was written, and its name with the `mark` of that folder."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if name.endswith(SUFFIX)):
            with contextlib.suppress(OSError):  # removed meanwhile, or not to be read
                if begins_as_session(path):
                    yield path.stat().st_mtime, f"{path.relative_to(folder).as_posix()}{mark}"
