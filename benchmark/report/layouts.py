"""What reports show of each suite: its metrics, its main metric, and sections of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .metrics import PHOTO_METRICS, STUDIO_METRICS, Metric, Record
from .studio_report import print_studio_sections, studio_sections


@dataclass(frozen=True)
class Layout:
    """Describe the reports of a suite.

    main             the metric by which editors are compared, by turn and over all turns
    head             of its columns, before the number of the turn
    note             below the table of a comparison, on the page
    sections         more sections of report.json, from the records and their `turn_table`
    print_sections   the same as text
    """

    metrics: Mapping[str, Metric]
    main: str
    head: str
    note: str
    sections: Callable[[Sequence[Record], pd.DataFrame], dict[str, Any]] = lambda records, table: {}
    print_sections: Callable[[dict[str, Any]], None] = lambda report: None


LAYOUTS: Mapping[str, Layout] = {
    "studio": Layout(
        STUDIO_METRICS,
        main="success",
        head="turn",
        note="In percent of the turns that count, with 95 % intervals over sessions (bootstrap). Success: the "
        "instruction is followed, the rest is preserved, and the identity is the anchor's. SR@k: the first k turns all "
        "succeeded. Probe accuracy: the attributes that the protocol probes are right.",
        sections=studio_sections,
        print_sections=print_studio_sections,
    ),
    "photos": Layout(
        PHOTO_METRICS,
        main="drift: delta_e",
        head="delta E at turn",
        note="Drift is measured where an image must be as it was: after an edit was reverted, at null edits, or "
        "outside an edit's mask; with 95 % intervals over images (bootstrap). 0 is no drift, a delta E of 2 is just "
        "visible. A no-op does not drift either: see the change per turn.",
    ),
}
