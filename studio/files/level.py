"""One rank or one alpha for all layers, as formats state it that have one number for the whole adapter.

A factor that is multiplied by a number, and a pair that is filled up with zeros, change the same: ``s · up @ down`` is
``s' · (s/s' · up) @ down``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad

from studio.adapters.contract.ranked import RankedConfig
from studio.files.format import Draft

__all__ = ["of_one_alpha", "of_one_rank"]


def of_one_alpha(draft: Draft) -> Draft:
    """Returns a low-rank adapter with one alpha at all layers, that of most of them; their ranks stay."""
    config, sites = draft.config, draft.sites
    assert isinstance(config, RankedConfig), "the format holds pairs"
    ranks = {path: len(tensors["down"]) for path, tensors in draft.layers.items()}
    scales = {path: config.scale_at(sites[path].path) for path in ranks}
    alpha = _usual({path: scales[path] * ranks[path] for path in ranks})
    layers = {path: _raised(own, scales[path] * ranks[path] / alpha) for path, own in draft.layers.items()}
    graded = _plainly(config).regraded(
        {sites[path].path: rank for path, rank in ranks.items()},
        {sites[path].path: alpha / rank for path, rank in ranks.items()},
    )
    return dataclasses.replace(draft, config=graded, layers=layers)


def of_one_rank(draft: Draft) -> Draft:
    """Returns a low-rank adapter with one rank and one scale at all layers, the largest and that of most of them."""
    config, sites = draft.config, draft.sites
    assert isinstance(config, RankedConfig), "the format holds pairs"
    scales = {path: config.scale_at(sites[path].path) for path in draft.layers}
    rank, scale = max(len(own["down"]) for own in draft.layers.values()), _usual(scales)
    layers = {path: _filled(_raised(own, scales[path] / scale), rank) for path, own in draft.layers.items()}
    own_paths = [sites[path].path for path in draft.layers]
    graded = _plainly(config).regraded(dict.fromkeys(own_paths, rank), dict.fromkeys(own_paths, scale))
    return dataclasses.replace(draft, config=graded, layers=layers)


def _plainly(config: RankedConfig) -> RankedConfig:
    """The config without the exceptions that it makes for layers."""
    return dataclasses.replace(config, rank_pattern={}, alpha_pattern={})


def _usual(values: Mapping[str, float]) -> float:
    """The number of most layers, but for 0, for which nothing can be made up; 1 where all are 0."""
    counts = Counter(value for value in values.values() if value)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else 1.0


def _raised(tensors: Mapping[str, Tensor], number: float) -> dict[str, Tensor]:
    return {**tensors, "up": tensors["up"] if number == 1.0 else (tensors["up"].double() * number).float()}


def _filled(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    more = rank - len(tensors["down"])
    return {**tensors, "down": pad(tensors["down"], (0, 0, 0, more)), "up": pad(tensors["up"], (0, more))}
