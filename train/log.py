"""What is seen of a run: TensorBoard, `log.jsonl`, a progress bar with the time left."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError

_PLAIN_SECONDS = 30  # between bars where they are written one below the other


class Log:
    """The log of one stage in `folder`, from step `step` on; what an interrupted run wrote beyond it is dropped.

    Raises AnchorEditError, here and in its methods, where the folder cannot be written to.
    """

    def __init__(self, folder: Path, step: int, title: str, progress: float):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
                with atomic_write(self.path, "log") as unfinished:
                    unfinished.write_text("".join(kept) if step else "", encoding="utf-8")
            self.file = self.path.open("a", encoding="utf-8")
            self.board = SummaryWriter(str(folder), purge_step=step + 1)
        self.bar = tqdm(
            total=100,
            initial=round(100 * progress, 2),
            desc=title,
            bar_format="{desc}: {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}",
            mininterval=0.5 if sys.stderr.isatty() else _PLAIN_SECONDS,
            dynamic_ncols=True,
        )
        self._sums: dict[str, list[float]] = defaultdict(list)

    def add(self, values: dict[str, float], progress: float) -> None:
        """The numbers of one step, which go into the next line as means."""
        for name, value in values.items():
            self._sums[name].append(value)
        self.bar.update(round(100 * min(progress, 1.0), 2) - self.bar.n)

    def line(self, step: int, facts: dict[str, float]) -> None:
        """Means since the last line, and `facts`."""
        row = {name: sum(values) / len(values) for name, values in self._sums.items()} | facts
        self._sums.clear()
        rounded = {name: float(f"{value:.6g}") for name, value in row.items()}
        with self._writing():
            for name, value in row.items():
                self.board.add_scalar(name, value, step)
            print(json.dumps({"step": step, **rounded}), file=self.file, flush=True)
        losses = {name: f"{value:.4g}" for name, value in row.items() if name.startswith("loss")}
        self.bar.set_postfix({"step": step, **losses}, refresh=False)

    def images(self, name: str, grid: Tensor, step: int) -> None:
        """An image [3, H, W] in 0..1."""
        with self._writing():
            self.board.add_image(name, grid, step)
            self.board.flush()

    def close(self) -> None:
        self.bar.refresh()
        self.bar.close()
        with self._writing():
            self.board.close()
            self.file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AnchorEditError(
                f"log '{self.path}' cannot be written ({error.strerror or error})",
                "Make room and go on with --resume, or give another --out",
            ) from error
