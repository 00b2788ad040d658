"""Runs of the same sessions side by side: those that differ in nothing but the noise are pooled.

A *group* is one editor under one name; its runs, one per sampling seed, count as more turns of the same sessions, so
that the intervals stay honest about how few scenes there are. Groups of the same sessions make a `Comparison`, in which
each is also compared with the first, session by session.

Legend: S sampling seeds, N sessions, T turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anchoredit_model.errors import AnchorEditError

from ..run_folder import RunFolder, read_json
from .photo_report import by_photo
from .run_report import by_session
from .statistics import Interval, intervals, paired_difference

# What says which sessions they are.
_SESSIONS = ("suite", "protocol", "turns", "sessions", "seed", "languages", "size", "area", "photos")
_TABLES = {"studio": by_session, "photos": by_photo}
_MAIN = {"studio": "success", "photos": "drift: delta_e"}  # what editors are compared by
_ONE_OF_SEVERAL = re.compile(r"(.+-)?seed-\d+")  # the folder of one run of a group


@dataclass(frozen=True)
class Run:
    """One finished run and its folder."""

    folder: Path
    report: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.report["settings"]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        opened = RunFolder(self.folder, self.settings)
        return [opened.record(name) for name in opened.names]

    def images(self, session: int) -> list[Tensor]:
        """Images [3, H, W] of a session, the source first."""
        opened = RunFolder(self.folder, self.settings)
        return opened.images(opened.names[session])


@dataclass(frozen=True)
class Group:
    """Runs of one editor on the same sessions, one per sampling seed."""

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """Every figure, [S, N, T]."""
        tables = [_TABLES[run.settings["suite"]](run.records) for run in self.runs]
        return {name: np.stack([table[name] for table in tables]) for name in tables[0]}

    @cached_property
    def by_turn(self) -> dict[str, list[Interval | None]]:
        """Every figure by turn, over sessions and seeds."""
        return {name: intervals(*_sums(table)) for name, table in self.tables.items()}

    @property
    def overall(self) -> Interval | None:
        """The main figure over all turns: success, or the drift of colour."""
        totals, counts = self._totals
        return intervals(totals[:, None], counts[:, None])[0]

    @property
    def absent(self) -> list[str]:
        """Measures that no weights were given for."""
        return self.runs[0].report.get("absent", [])

    @property
    def seconds_by_turn(self) -> list[float]:
        return np.median([run.report["cost"]["seconds_by_turn"] for run in self.runs], axis=0).tolist()

    def against(self, other: Group) -> Interval | None:
        """Return the main figure over all turns, minus the other's."""
        (mine, my_counts), (its, its_counts) = self._totals, other._totals
        return paired_difference((mine, its), (my_counts, its_counts))

    @property
    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Per session the sum of the main figure and how many turns have it, [N] each."""
        name = _MAIN[self.runs[0].settings["suite"]]
        if name not in self.tables:  # photos of which no turn is known
            return np.zeros(len(self.runs[0].records)), np.zeros(len(self.runs[0].records))
        totals, counts = _sums(self.tables[name])
        return totals.sum(axis=1), counts.sum(axis=1)


@dataclass(frozen=True)
class Comparison:
    """Groups on the same sessions."""

    settings: dict[str, Any]
    groups: tuple[Group, ...]

    @property
    def title(self) -> str:
        of = "photos, " if self.settings["suite"] == "photos" else ""
        return of + "{protocol}, {turns} turns, {sessions} sessions".format(**self.settings)


def find_comparisons(folders: Sequence[Path]) -> list[Comparison]:
    """All finished runs in these folders, by what they ran on. Raises AnchorEditError if there is none.

    A run is named by its folders below the given one. Runs in folders `...seed-0`, `...seed-1` of one folder are pooled
    under the name of that folder; an AnchorEditError says if they differ in more than their sampling seeds.
    """
    runs: dict[str, dict[str, list[Run]]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("report.json")):
            report = read_json(path)
            if isinstance(report, dict) and "drift_by_turn" in report:
                sessions = repr([report["settings"].get(name) for name in _SESSIONS])
                runs.setdefault(sessions, {}).setdefault(_name(path.parent, folder), []).append(
                    Run(path.parent, report)
                )
    if not runs:
        names = ", ".join(f"'{folder}'" for folder in folders)
        raise AnchorEditError(f"no finished run in {names}", "Give folders that `python -m benchmark run` has filled")
    comparisons = []
    for named in runs.values():
        groups = tuple(_group(name, found) for name, found in named.items())
        settings = groups[0].runs[0].settings
        comparisons.append(Comparison({name: settings.get(name) for name in _SESSIONS}, groups))
    return comparisons


def _name(folder: Path, root: Path) -> str:
    folder = folder.parent if folder != root and _ONE_OF_SEVERAL.fullmatch(folder.name) else folder
    return " / ".join(folder.relative_to(root).parts) or root.resolve().name


def _group(name: str, runs: Sequence[Run]) -> Group:
    def asked(run: Run) -> tuple:
        settings = run.settings
        return settings["editor"], {**settings["editor_settings"], "sampling_seed": None}, settings.get("similarities")

    for run in runs:
        if asked(run) != asked(runs[0]):
            raise AnchorEditError(
                f"'{runs[0].folder}' and '{run.folder}' are both '{name}' but of different editors or measures",
                "Give folders of other names",
            )
    return Group(name, tuple(runs))


def _sums(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and counts [N, T] over the seeds of a table [S, N, T], NaN left out."""
    table = np.asarray(table, dtype=np.float64)
    return np.nansum(table, axis=0), (~np.isnan(table)).sum(axis=0)
