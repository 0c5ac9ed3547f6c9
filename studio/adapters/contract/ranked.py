"""Fields of every method with a rank: the rank, its scale, and patterns that change them layer by layer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

from torch import Tensor

from studio.adapters.contract.adapter import Adapter, AdapterConfig, Delta
from studio.adapters.contract.pattern import matches
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig

__all__ = ["FactorAdapter", "FactorConfig", "RankedConfig", "allows_any_rank", "any_rank", "checked_rank"]

C = TypeVar("C", bound="RankedConfig")
F = TypeVar("F", bound="FactorConfig")


@dataclass(frozen=True, kw_only=True)
class RankedConfig(AdapterConfig):
    """A config with a rank.

    Attributes:
        rank: inner size of the factors, >= 1 and at most the smaller side of the layer.
        alpha: numerator of the scale ``s = alpha / rank``; None means ``rank``, so that ``s = 1``.
        rank_pattern: rank of the layers that match a pattern; the first match counts.
        alpha_pattern: the same for alpha.
    """

    small: ClassVar[Mapping[str, Any]] = {"rank": 2}
    patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "alpha_pattern")

    rank: int = 8
    alpha: float | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        for name, rank in (("rank", self.rank), *(("rank_pattern", rank) for rank in self.rank_pattern.values())):
            sound = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
            self.require(sound, name, "a whole number, at least 1")
        self.require(self.alpha is None or finite(self.alpha), "alpha", "a finite number, or None for the rank")
        self.require(all(map(finite, self.alpha_pattern.values())), "alpha_pattern", "a table of finite numbers")

    def rank_at(self, path: str) -> int:
        """Returns the rank at the layer ``path``."""
        return int(_lookup(self.rank_pattern, path, self.rank)) if self.rank_pattern else self.rank

    def alpha_at(self, path: str) -> float:
        """Returns alpha at the layer ``path``.

        An alpha that was not given follows the rank of the layer.
        """
        default = self.rank_at(path) if self.alpha is None else self.alpha
        return float(_lookup(self.alpha_pattern, path, default)) if self.alpha_pattern else float(default)

    def scale_at(self, path: str) -> float:
        """Returns the scale ``s`` at the layer ``path``: ``alpha / rank``."""
        return self.alpha_at(path) / self.divisor(self.rank_at(path))

    def divisor(self, rank: int) -> float:
        """Returns what alpha is divided by."""
        return float(rank)

    def regraded(self: C, ranks: Mapping[str, int], scales: Mapping[str, float]) -> C:
        """Returns a config with this rank and scale at each of these layers, all that there are.

        Example:
            >>> RankedConfig(rank=2).regraded({"a": 4, "b": 4, "c": 8}, {"a": 1.0, "b": 1.0, "c": 1.0}).rank_pattern
            {'re:c': 8}
        """
        alphas = {path: scales[path] * self.divisor(rank) for path, rank in ranks.items()}
        follows = self.alpha is None and all(alphas[path] == rank for path, rank in ranks.items())
        rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
        return dataclasses.replace(
            self,
            rank=rank,
            alpha=None if follows else alpha,
            rank_pattern={f"re:{re.escape(path)}": one for path, one in ranks.items() if one != rank},
            alpha_pattern={
                f"re:{re.escape(path)}": one for path, one in alphas.items() if one != alpha and not follows
            },
        )


@dataclass(frozen=True, kw_only=True)
class FactorConfig(RankedConfig):
    """A config of a low-rank pair with the choices of LoRA.

    Attributes:
        dropout: probability in [0, 1) with which inputs are dropped while training.
        rank_stabilized: use ``s = alpha / sqrt(rank)`` (rsLoRA, Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
    """

    dropout: float = 0.0
    rank_stabilized: bool = False

    def check(self) -> None:
        super().check()
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")

    def divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.rank_stabilized else float(rank)


class FactorAdapter(Adapter[F]):
    """An adapter whose change is a low-rank pair, :meth:`factors`; a method says what its tensors are."""

    fused = True
    scale: float

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up, scale, extra = self.factors()
        change = self.site.shaped((up * scale) @ down.flatten(1 + len(self.site.lead)))
        return Delta(change, None if extra is None else extra * scale)

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up, scale, extra = self.factors()
        change = self.site.low_rank(self.dropped(x), down.to(y.dtype), (up * scale).to(y.dtype))
        return change if extra is None else change + self.site.over_outputs((extra * scale).to(y.dtype))


def _lookup(table: Mapping[str, Any], path: str, default: float) -> float:
    if path in table:
        return float(table[path])
    return next((float(value) for pattern, value in table.items() if matches(pattern, path)), default)


_ANY_RANK: Final[ContextVar[bool]] = ContextVar("any_rank", default=False)


@contextmanager
def any_rank() -> Iterator[None]:
    """Lets new adapters have ranks larger than their layer while the context lasts, as PEFT's users may."""
    token = _ANY_RANK.set(True)
    try:
        yield
    finally:
        _ANY_RANK.reset(token)


def allows_any_rank() -> bool:
    """Says whether new adapters may have ranks larger than their layer now (:func:`any_rank`)."""
    return _ANY_RANK.get()


def checked_rank(site: Site, config: RankedConfig) -> int:
    """Returns the rank of a new adapter at ``site``.

    Raises:
        BadConfig: a rank larger than the layer, which would only add redundant numbers (see :func:`any_rank`).
    """
    rank, most = config.rank_at(site.path), min(site.rows, site.cols)
    if rank > most and not allows_any_rank():
        raise BadConfig(
            f"{type(config).__name__}(rank={rank}) is larger than the layer {site.path} ({site.rows} x {site.cols}); "
            f"use a rank of at most {most}, a rank_pattern for this layer, or exclude it"
        )
    return rank
