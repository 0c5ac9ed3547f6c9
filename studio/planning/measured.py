"""What runs on this machine held at most, beside what was forecast of them: it corrects the next forecast.

One line of JSON per run, in a file under the cache folder. A line is written in one piece and read by itself, so
several processes may write at once, and one that is damaged is passed over.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from studio.atomic import atomic_write, sentences
from studio.caches import cache_folder

__all__ = ["Correction", "Measured", "correction", "recall", "remember"]

FILE: Final = "peaks.jsonl"
KEPT: Final = 200
"""Lines that stay when the file is made shorter, which it is at twice as many."""

ALIKE: Final = 4
"""Runs that held at most so many times as much, or as little, tell something about a forecast."""

BELIEVED: Final = 3
"""A peak that is so many times what was forecast, or less than that part of it, is of something else."""


@dataclass(frozen=True)
class Measured:
    """A run.

    Args:
        device: its device, as :func:`studio.device.title` calls it. measured: bytes that it held at most.
        forecast: bytes that were forecast, without a correction. base: what was trained on.
    """

    device: str
    measured: int
    forecast: int
    base: str = ""

    @property
    def ratio(self) -> float:
        """What was measured over what was forecast."""
        return self.measured / self.forecast


@dataclass(frozen=True)
class Correction:
    """What a forecast is multiplied by.

    Args:
        factor: the median of what was measured over what was forecast. runs: how many there were.

    Example:
        >>> str(Correction(1.04, 3)), str(Correction())
        ('corrected by 3 runs on this machine: ×1.04', '')
    """

    factor: float = 1.0
    runs: int = 0

    def __str__(self) -> str:
        return f"corrected by {self.runs} run{'s' * (self.runs > 1)} on this machine: ×{self.factor:.2f}" * bool(
            self.runs
        )


def remember(run: Measured, folder: Path | None = None) -> None:
    """Notes a run.

    Args:
        run: the run. folder: the cache folder; None: the user's.

    Raises:
        BadFile: nothing can be written there.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> remember(Measured("cpu", 1_100, 1_000), place)
        >>> correction(3_000, "cpu", place), correction(5_000, "cpu", place)
        (Correction(factor=1.1, runs=1), Correction(factor=1.0, runs=0))
    """
    file = (folder or cache_folder()) / FILE
    with sentences(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        place = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(place, f"\n{json.dumps(asdict(run))}\n".encode())  # after half a line of a killed process, too
        finally:
            os.close(place)
    lines = _lines(file)
    if len(lines) >= 2 * KEPT:  # what another process adds meanwhile is lost, and is no loss
        atomic_write(file, "".join(f"{line}\n" for line in lines[-KEPT:]))


def recall(device: str, folder: Path | None = None) -> list[Measured]:
    """Returns the runs of a device that were noted, oldest first; none where nothing can be read.

    Args:
        device: as :func:`studio.device.title` calls it. folder: the cache folder; None: the user's.
    """
    return [run for run in _runs((folder or cache_folder()) / FILE) if run.device == device]


def correction(peak: int, device: str, folder: Path | None = None) -> Correction:
    """Returns what a forecast is multiplied by, from runs on the device that held about as much.

    Args:
        peak: bytes that were forecast. device: as :func:`studio.device.title` calls it. folder: the cache folder; None:
            the user's.
    """
    alike = [run.ratio for run in recall(device, folder) if peak / ALIKE <= run.forecast <= peak * ALIKE]
    sound = [ratio for ratio in alike if 1 / BELIEVED <= ratio <= BELIEVED]
    return Correction(statistics.median(sound), len(sound)) if sound else Correction()


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()]
    except OSError:
        return []


def _runs(file: Path) -> Iterator[Measured]:
    for line in _lines(file):
        try:
            found: Any = json.loads(line)
            run = Measured(str(found["device"]), int(found["measured"]), int(found["forecast"]), str(found["base"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if run.measured > 0 and run.forecast > 0:
            yield run
