"""What a run says while it goes on: a line or a bar for the user, ``log.jsonl``, TensorBoard where asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from studio.atomic import sentences
from studio.device import memory
from studio.packages import need
from studio.trainers.loop.curve import RunningMean, smoothing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["Log", "console"]


def console(quiet: bool = False) -> Console:
    """Returns where lines for the user go: stderr, so that stdout stays for results."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


class Log:
    """The log of one run; a context.

    Args:
        file: ``log.jsonl``, which is appended to; None writes none.
        total: steps of the run.
        before: the losses of the steps that were done before.
        out: where lines for the user go.
        device: whose memory is shown.
        tensorboard: folder for TensorBoard's files, or None.

    Raises:
        MissingPackage: TensorBoard was asked for and is not installed.
    """

    def __init__(
        self, file: Path | None, *, total: int, before: Sequence[float], out: Console, device: torch.device,
        tensorboard: Path | None,
    ) -> None:  # fmt: skip
        self.file, self.total, self.first, self.out, self.device = file, total, len(before), out, device
        self._curves: Any = None
        if tensorboard is not None:
            need("tensorboard", "TensorBoard curves", extra="metrics")
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(str(tensorboard), purge_step=self.first)
        self._mean = RunningMean(smoothing(total))  # single losses jump with the timestep that was drawn
        for loss in before:
            self._mean.take(loss)
        self._smooth = math.nan
        self._stream: TextIO | None = None
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Log:
        if self.file is not None:
            with sentences(self.file):
                self._stream = self.file.open("a", encoding="utf-8", buffering=1)
        if self.out.is_terminal and not self.out.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"),
                TextColumn("ETA"), TimeRemainingColumn(), console=self.out, transient=False, refresh_per_second=4,
            )  # fmt: skip
            self._row = self._bar.add_task("train", total=self.total, completed=self.first, figures="")
            self._bar.start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._curves is not None:
            self._curves.close()
        if self._stream is not None and self.file is not None:
            with sentences(self.file):
                self._stream.close()

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Logs a step.

        Args:
            step: steps done, this one included.
            figures: ``loss``, ``learning_rate``, ``gradient_norm`` and parts of the loss.

        Raises:
            BadFile: the log cannot be written to.
        """
        seconds = time.perf_counter() - self._begin
        done = step - self.first
        self._smooth = self._mean.take(figures["loss"])
        used = memory(self.device).used
        if self.file is not None:
            assert self._stream is not None, "a log is a context"
            with sentences(self.file):
                entry = {"step": step, **figures, "seconds": round(seconds, 4), "memory": used}
                self._stream.write(json.dumps(entry) + "\n")
        if self._curves is not None:
            for name, value in figures.items():
                self._curves.add_scalar(name, value, step)
        if self._bar is not None:
            assert self._row is not None, "made with the bar"
            self._bar.update(self._row, completed=step, figures=self._figures(done / seconds, figures, used))
        elif step == self.total or step % max(self.total // 10, 1) == 0:
            left = (self.total - step) * seconds / done
            line = self._figures(done / seconds, figures, used)
            self.out.print(f"step {step}/{self.total} · {line} · ETA {left:.0f} s", markup=False)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self.out.print(line, markup=False)

    def _figures(self, rate: float, figures: dict[str, float], used: int) -> str:
        shown = f"{rate:.2f} it/s · mean loss {self._smooth:.4f} · lr {figures['learning_rate']:.2e}"
        return f"{shown} · {used / 2**30:.2f} GiB"
