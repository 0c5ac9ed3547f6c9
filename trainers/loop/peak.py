"""What a run holds at most, measured where it runs, and the forecast beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from studio.device import allocated, reset_peak, title
from studio.errors import StudioError
from studio.planning.forecast import CATEGORIES, Forecast
from studio.planning.measured import Measured, remember
from studio.planning.sizes import in_words
from studio.trainers.loop.task import Lesson

__all__ = ["Meter", "Taken", "taken"]

WORTH: Final = 60.0
"""Seconds that a run has taken when it can spare the few that a forecast takes."""

SMALL: Final = 10**9
"""Bytes below which a run on a CPU corrects nothing: packages that are loaded meanwhile weigh as much."""


class Meter:
    """Measures what a run holds at most, from now on.

    That is what the tensors of its base take, and by how much the process has grown since. What it held before for
    other purposes is left out, and on a CPU the interpreter, its packages and the files that are mapped into it too.

    Args:
        modules: the base's.

    Example:
        >>> import torch
        >>> meter = Meter([nn.Linear(1024, 1024)])
        >>> kept = torch.ones(2**26)
        >>> meter.peak is None or meter.peak > 2**22 + 2**27
        True
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
        self.device = tensors[0].device
        there = {one.untyped_storage()._cdata: one.untyped_storage() for one in tensors if one.device == self.device}
        self.held = sum(storage.nbytes() for storage in there.values())
        reset_peak(self.device)
        self._before, self._begin = allocated(self.device), time.monotonic()

    @property
    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        now = allocated(self.device)
        if now is None or self._before is None:
            return None
        return self.held + max(now.peak - self._before.used, 0)

    @property
    def seconds(self) -> float:
        """How long it has measured."""
        return time.monotonic() - self._begin


@dataclass(frozen=True)
class Taken:
    """What a run has taken.

    Args:
        measured: bytes at the peak; None: nobody knows. forecast: what was to be expected; None: nobody looked. shared:
            the device is a CPU, on which packages are loaded too.

    Example:
        >>> Taken(8_100_000_000).facts(), str(Taken(8_100_000_000)), str(Taken())
        ({'peak': 8100000000}, '8.10 GB', 'not known')
    """

    measured: int | None = None
    forecast: Forecast | None = None
    shared: bool = False

    def __str__(self) -> str:
        return "not known" if self.measured is None else in_words(self.measured)

    def facts(self) -> dict[str, int]:
        """Returns what ``result.toml`` says: bytes, those that are known."""
        found = {"peak": self.measured, "forecast": self.forecast.counted if self.forecast else None}
        return {name: size for name, size in found.items() if size is not None}

    @property
    def columns(self) -> Sequence[str]:
        """What of the forecast's categories is more than nothing."""
        phases = self.forecast.phases if self.forecast else ()
        return [name for name in CATEGORIES if any(phase.by.get(name) for phase in phases)]

    @property
    def words(self) -> str:
        """The forecast and what was measured, in a sentence."""
        assert self.forecast is not None, "asked where there is one"
        said = f"forecast {in_words(self.forecast.counted)} ({self.forecast.worst.name}), measured {self}"
        if self.measured is None:
            return said
        more = "; on a CPU that is all by which the process has grown, with packages that it has loaded meanwhile"
        return f"{said}: ×{self.measured / self.forecast.counted:.2f}{more * self.shared}"

    @property
    def rows(self) -> Sequence[tuple[str, Sequence[str]]]:
        """The forecast's phases, each with its total and its categories in words."""
        phases = self.forecast.phases if self.forecast else ()
        return [
            (phase.name, [in_words(phase.total), *(in_words(phase.by[name]) if phase.by.get(name) else ""
                                                   for name in self.columns)]) for phase in phases
        ]  # fmt: skip

    def picture(self) -> Any:
        """Returns the forecast as stacked bars, and what was measured beside them."""
        from studio.planning.picture import draw

        assert self.forecast is not None, "asked where there is one"
        return draw(self.forecast, measured=self.measured)


def taken(meter: Meter, lesson: Lesson, say: Callable[[str], None]) -> Taken:
    """Returns what a run has taken, and notes it for the forecasts of the next ones.

    The forecast is made where one was asked for before (``fit``), and after a run that was long enough not to feel it.

    Args:
        meter: has measured it. lesson: what was trained. say: takes a line about what went wrong, which costs the run
            nothing.
    """
    measured, shared = meter.peak, meter.device.type == "cpu"
    forecast: Forecast | None = None
    if lesson.foresee is None or (lesson.plan.fit is None and meter.seconds < WORTH):
        return Taken(measured, shared=shared)
    try:
        forecast = lesson.foresee()
        if measured is not None and (not shared or forecast.counted >= SMALL):
            remember(Measured(title(meter.device), measured, forecast.counted, forecast.base))
    except StudioError as problem:
        say(f"no forecast stands beside the measured peak: {problem}")
    except Exception as problem:  # whatever a forecast comes upon: the training is done, and is worth more than it
        say(f"no forecast stands beside the measured peak: {type(problem).__name__}: {problem}")
    return Taken(measured, forecast, shared)
