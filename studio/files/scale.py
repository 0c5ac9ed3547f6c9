"""Rank and scale of every layer, and a config that says the same.

Files state the scale in three ways: in the config (PEFT), in an alpha tensor beside each pair (kohya), or not at all.
Whatever a file states wins over the config that came with it, because it is what other programs read.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from studio.adapters import AdapterConfig
from studio.adapters.contract.ranked import FactorConfig, RankedConfig
from studio.files.endings import shortest_endings

__all__ = ["Grade", "root_or_rank", "settle"]


class Grade(NamedTuple):
    """Rank and scale of one layer, as a file states them; None where it says nothing."""

    rank: int | None
    scale: float | None


def root_or_rank(rank: int, stabilized: bool) -> float:
    """The denominator of the scale: ``rank``, or ``sqrt(rank)`` where it is rank-stabilized."""
    return math.sqrt(rank) if stabilized else float(rank)


def settle(config: AdapterConfig, grades: Mapping[str, Grade]) -> AdapterConfig:
    """Returns ``config`` if it gives every layer the rank and scale in ``grades``, else one that does.

    Args:
        config: the config that a file carries, or one made from its fields.
        grades: path -> rank and scale.
    """
    if not isinstance(config, RankedConfig) or all(_agrees(config, path, said) for path, said in grades.items()):
        return config
    stabilized = isinstance(config, FactorConfig) and config.rank_stabilized
    ranks = {path: config.rank_at(path) if said.rank is None else said.rank for path, said in grades.items()}
    alphas = {
        path: _alpha(config, path, ranks[path])
        if said.scale is None
        else float(f"{said.scale * root_or_rank(ranks[path], stabilized):.12g}")
        for path, said in grades.items()
    }
    rank, alpha = _most_common(ranks), _most_common(alphas)
    follows = all(alphas[path] == ranks[path] for path in grades)
    return dataclasses.replace(
        config,
        rank=int(rank),
        alpha=None if follows else alpha,
        rank_pattern={pattern: int(value) for pattern, value in _exceptions(ranks, rank).items()},
        alpha_pattern={} if follows else _exceptions(alphas, alpha),
    )


def _alpha(config: RankedConfig, path: str, rank: int) -> float:
    """Alpha at a layer of this rank, which may be another than the config says; an alpha not given follows it."""
    follows = config.alpha is None and config.alpha_at(path) == config.rank_at(path)
    return float(rank) if follows else config.alpha_at(path)


def _agrees(config: RankedConfig, path: str, said: Grade) -> bool:
    if said.rank is not None and said.rank != config.rank_at(path):
        return False
    return said.scale is None or math.isclose(said.scale, config.scale_at(path), rel_tol=1e-6, abs_tol=1e-12)


def _most_common(values: Mapping[str, float]) -> float:
    counts = Counter(values.values())
    return min(counts, key=lambda value: (-counts[value], value))


def _exceptions(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Patterns of the layers whose value is not the usual one."""
    groups: dict[float, list[str]] = {}
    for path, value in values.items():
        if value != usual:
            groups.setdefault(value, []).append(path)
    patterns: dict[str, float] = {}
    for value in sorted(groups):
        # where a name ends another one, only the whole expression is exact
        endings = shortest_endings(groups[value], values) or groups[value]
        patterns |= dict.fromkeys(endings, value)
    return dict(sorted(patterns.items()))
