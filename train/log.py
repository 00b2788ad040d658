"""The log of a run: TensorBoard, `log.jsonl`, and a progress bar with the time left."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError

_PLAIN_SECONDS = 30  # between progress bars if stderr is not a terminal


class Log:
    """Write the log of one stage to `folder` after step `step`; drop the lines that an interrupted run wrote after it.

    Raises AnchorEditError, here and in its methods, if the folder cannot be written to.
    """

    def __init__(self, folder: Path, step: int, title: str, progress: float):
        self.path = folder / "log.jsonl"
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
                with atomic_write(self.path, "log") as unfinished:
                    unfinished.write_text("".join(kept) if step else "", encoding="utf-8")
            self.file = self.path.open("a", encoding="utf-8")
            self.board = _Board(folder, step + 1)
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
        """Add the values of one step; the next line contains their means."""
        for name, value in values.items():
            self._sums[name].append(value)
        self.bar.update(round(100 * min(progress, 1.0), 2) - self.bar.n)

    def line(self, step: int, values: dict[str, float]) -> None:
        """Write the means since the last line, and `values`."""
        row = {name: sum(added) / len(added) for name, added in self._sums.items()} | values
        self._sums.clear()
        rounded = {name: float(f"{value:.6g}") for name, value in row.items()}
        with self._writing():
            self.board.scalars(row, step)
            print(json.dumps({"step": step, **rounded}), file=self.file, flush=True)
        losses = {name: f"{value:.4g}" for name, value in row.items() if name.startswith("loss")}
        self.bar.set_postfix({"step": step, **losses}, refresh=False)

    def images(self, name: str, grid: Tensor, step: int) -> None:
        """Write an image [3, H, W] in 0..1."""
        with self._writing():
            self.board.image(name, grid, step)

    def close(self) -> None:
        """Close the files and the progress bar."""
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
                "Free disk space and continue with --resume, or give another --out",
            ) from error


class _Board:
    """Write TensorBoard's event file from step `step` on; events are on the disk when a method returns.

    `SummaryWriter` writes in its own thread: an error there is printed, and raised by some later call.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue] generated
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = RecordWriter((folder / name).open("xb"))
        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=SessionLog(status=SessionLog.START))  # hides later steps of earlier files
        self.file.flush()

    def scalars(self, values: dict[str, float], step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))
        self.file.flush()

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Write an image [3, H, W] in 0..1."""
        from torch.utils.tensorboard.summary import image as summary_of

        self._add(step=step, summary=summary_of(name, image, dataformats="CHW"))
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def _add(self, **event) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] generated

        self.file.write(Event(wall_time=time.time(), **event).SerializeToString())
