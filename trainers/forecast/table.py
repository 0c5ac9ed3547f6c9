"""The published peaks beside the forecasts of the same recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from studio.adapters import METHODS
from studio.device import dtype_named
from studio.planning.blueprint import blueprint
from studio.planning.forecast import Forecast
from studio.planning.published import MIB, PROCESS, PUBLISHED, Published
from studio.planning.sharding import page_locked
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

    @property
    def host(self) -> float | None:
        """GB of the CPU's memory: the process by itself as published, and what rests there; None: nothing is published.

        What rests there is page-locked: each tensor takes a power of two.
        """
        if self.row.host is None:
            return None
        process = PROCESS[self.row.model]
        if self.row.settings.get("offload") != "all":
            return process
        parts = blueprint(self.row.model).components.values()
        itemsize = dtype_named(self.row.settings["dtype"]).itemsize
        weights = page_locked(p.numel() * itemsize for part in parts for p in part.parameters())
        return process + (weights + self.forecast.host.get("optimizer", 0)) / 1e9

    @property
    def host_deviation(self) -> float | None:
        """How far that is above the published figure; None where nothing rests there, or nothing is published."""
        resting = self.host is not None and self.row.settings.get("offload") == "all"
        return self.host / self.row.host - 1 if resting and self.host and self.row.host else None

    def cells(self) -> tuple[str, ...]:
        """Returns model, what, published, forecast, deviation in words, and all three of the CPU's memory in one."""
        row, apart = self.row, self.deviation
        told = f"more than {row.there:g}" if row.published is None else f"{row.published:g}"
        agreed = "too large, too" if self.gigabytes > row.there else "would fit"
        deviation = agreed if apart is None else f"{apart:+.1%} / {self.in_mebibytes:+.1%}"
        rests = self.host_deviation
        cpu = (
            ("" if row.host is None else f"{row.host:g}")
            if rests is None
            else f"{row.host:g}; {self.host:.1f}, {rests:+.0%}"
        )
        return row.model, row.what, told, f"{self.gigabytes:.2f}", deviation, cpu


def compare(rows: Iterable[Published] = PUBLISHED) -> Iterator[Compared]:
    """Forecasts published rows, one by one.

    Args:
        rows: of :data:`~studio.planning.published.PUBLISHED`.
    """
    for row in rows:
        adapter = METHODS["lora"](rank=row.rank, targets=row.targets) if row.targets else None  # type: ignore[call-arg]
        yield Compared(row, forecast(row.model, Asked(adapter=adapter, corrected=False, **row.settings)))
