"""The published peaks beside the forecasts of the same recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from studio.adapters import METHODS
from studio.planning.forecast import Forecast
from studio.planning.published import MIB, PUBLISHED, Published
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.plan import forecast

__all__ = ["Compared", "compare"]


@dataclass(frozen=True)
class Compared:
    """A published row and its forecast."""

    row: Published
    forecast: Forecast

    @property
    def gigabytes(self) -> float:
        """The forecast peak, in GB of 10⁹ bytes."""
        return self.forecast.peak / 1e9

    @property
    def deviation(self) -> float | None:
        """How far the forecast is above the published peak, as a share; None where there was not enough memory."""
        return None if self.row.published is None else self.gigabytes / self.row.published - 1

    @property
    def in_mebibytes(self) -> float | None:
        """The same, where a published GB is a thousand MiB."""
        return None if self.row.published is None else self.forecast.peak / (1000 * MIB) / self.row.published - 1

    def cells(self) -> tuple[str, ...]:
        """Returns model, what, published, forecast, deviation in words."""
        row, apart = self.row, self.deviation
        told = f"more than {row.there:g}" if row.published is None else f"{row.published:g}"
        agreed = "too large, too" if self.gigabytes > row.there else "would fit"
        deviation = agreed if apart is None else f"{apart:+.1%} / {self.in_mebibytes:+.1%}"
        return row.model, row.what, told, f"{self.gigabytes:.2f}", deviation


def compare(rows: Iterable[Published] = PUBLISHED) -> Iterator[Compared]:
    """Forecasts published rows, one by one.

    Args:
        rows: of :data:`~studio.planning.published.PUBLISHED`.
    """
    for row in rows:
        adapter = METHODS["lora"](rank=row.rank, targets=row.targets) if row.targets else None  # type: ignore[call-arg]
        yield Compared(row, forecast(row.model, Asked(adapter=adapter, corrected=False, **row.settings)))
