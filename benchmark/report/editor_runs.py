"""Finished runs, grouped for comparison: by their sessions, then by editor.

`EditorRuns` are the runs of one editor on the same sessions, one per sampling seed. They count as more turns of the
same sessions, so that the intervals reflect how few sessions there are. A `Comparison` is several editors on the same
sessions; the first is the baseline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from anchoredit_model.errors import AnchorEditError

from ..run_folder import RunFolder, read_json
from .layouts import LAYOUTS, Layout
from .metrics import intervals_by_turn, turn_table
from .run_report import absent_similarities
from .statistics import Interval, intervals, paired_difference

# The settings that say which sessions a run is about.
_SESSIONS = ("suite", "protocol", "turns", "sessions", "seed", "languages", "size", "resolution", "photos")
_SEED_FOLDER = re.compile(r"(.+-)?seed-\d+")  # of one of several runs of an editor


@dataclass(frozen=True)
class Run:
    """Hold the folder and the report of one finished run."""

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
        """Load the images [3, H, W] of a session, the source first."""
        opened = RunFolder(self.folder, self.settings)
        return opened.images(opened.names[session])


@dataclass(frozen=True)
class EditorRuns:
    """Pool the runs of one editor on the same sessions."""

    name: str
    runs: tuple[Run, ...]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.runs[0].settings["suite"]]

    @cached_property
    def turns(self) -> pd.DataFrame:
        """A column per metric, a row per run, session and turn."""
        tables = [turn_table(run.records, self.layout.metrics) for run in self.runs]
        return pd.concat(tables, keys=range(len(tables)), names=["run"])

    @cached_property
    def by_turn(self) -> dict[str, list[Interval | None]]:
        """Every metric by turn, over sessions and runs."""
        return intervals_by_turn(self.turns)

    @property
    def overall(self) -> Interval | None:
        """The main metric over all turns."""
        totals, counts = self._totals
        return intervals(totals[:, None], counts[:, None])[0]

    @property
    def absent(self) -> list[str]:
        return absent_similarities(self.runs[0].settings)

    @property
    def seconds_by_turn(self) -> list[float]:
        return np.median([run.report["cost"]["seconds_by_turn"] for run in self.runs], axis=0).tolist()

    def difference(self, baseline: EditorRuns) -> Interval | None:
        """Return the main metric over all turns, minus that of the baseline, session by session."""
        return paired_difference(self._totals, baseline._totals)

    @property
    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the main metric and the number of turns that have it, [N] each, per session."""
        sessions = self.turns[self.layout.main].groupby("session")
        return sessions.sum().to_numpy(), sessions.count().to_numpy()


@dataclass(frozen=True)
class Comparison:
    """Hold several editors on the same sessions; the first is the baseline."""

    settings: dict[str, Any]
    editors: tuple[EditorRuns, ...]

    @property
    def baseline(self) -> EditorRuns:
        return self.editors[0]

    @property
    def layout(self) -> Layout:
        return self.baseline.layout

    @property
    def title(self) -> str:
        suite = "photos, " if self.settings["suite"] == "photos" else ""
        return suite + "{protocol}, {turns} turns, {sessions} sessions".format(**self.settings)

    def has(self, metric: str) -> bool:
        """Return whether any editor has values of a metric."""
        return any(any(editor.by_turn[metric]) for editor in self.editors)


def find_comparisons(folders: Sequence[Path]) -> list[Comparison]:
    """Group all finished runs in these folders by their sessions. Raises AnchorEditError if there is none.

    A run is named by its folders below the given one. Runs in folders `...seed-0`, `...seed-1` of one folder are pooled
    under the name of that folder; they must differ in nothing but their sampling seeds.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("report.json")):
            report = read_json(path)
            if isinstance(report, dict) and "editor_settings" in report.get("settings", ()):
                sessions = repr([report["settings"].get(name) for name in _SESSIONS])
                runs = found.setdefault(sessions, {}).setdefault(_name(path.parent, folder), [])
                runs.append(Run(path.parent, report))
    if not found:
        names = ", ".join(f"'{folder}'" for folder in folders)
        raise AnchorEditError(f"no finished run in {names}", "Give folders that `python -m benchmark run` has written")
    comparisons = []
    for named in found.values():
        editors = tuple(_pooled(name, runs) for name, runs in named.items())
        settings = editors[0].runs[0].settings
        comparisons.append(Comparison({name: settings.get(name) for name in _SESSIONS}, editors))
    return comparisons


def _name(folder: Path, root: Path) -> str:
    folder = folder.parent if folder != root and _SEED_FOLDER.fullmatch(folder.name) else folder
    return " / ".join(folder.relative_to(root).parts) or root.resolve().name


def _pooled(name: str, runs: Sequence[Run]) -> EditorRuns:
    def editor(run: Run) -> tuple:
        settings = run.settings
        return settings["editor"], {**settings["editor_settings"], "sampling_seed": None}, settings.get("similarities")

    for run in runs:
        if editor(run) != editor(runs[0]):
            raise AnchorEditError(
                f"'{runs[0].folder}' and '{run.folder}' are both '{name}' but differ in editor or similarity models",
                "Give folders of other names",
            )
    return EditorRuns(name, tuple(runs))
