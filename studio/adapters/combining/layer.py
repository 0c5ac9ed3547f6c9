"""One layer's part of a combination: what its adapters change there, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studio.adapters.combining.pairs import Pair, of_rank, rounded_to, stacked
from studio.adapters.combining.rules import Choices, Rule
from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.contract.change import change_of
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["Made", "Part", "combined_dense", "combined_pairs", "is_pair"]


class Part(NamedTuple):
    """An adapter on a layer: its name, itself, and its strength there."""

    name: str
    adapter: Adapter
    strength: float


@dataclass(frozen=True)
class Made:
    """What a layer came to.

    Args:
        tensors: those of a LoRA (``down``, ``up`` and maybe ``bias``) or of a full difference (``weight``, ``bias``).
        lacking: the square of what a rank left out. whole: the square of the whole change.
        left: of a rule that takes something of each adapter, by name, the squares of what it left and of what was.
    """

    tensors: dict[str, Tensor]
    lacking: float = 0.0
    whole: float = 0.0
    left: dict[str, tuple[float, float]] = field(default_factory=dict)


def is_pair(adapter: Adapter) -> bool:
    """Says whether what an adapter changes is a low-rank pair and nothing else."""
    return bool(adapter.fused)


def combined_pairs(site: Site, parts: Sequence[Part], rule: Rule, choices: Choices, rank: int | None) -> Made:
    """Combines factor pairs; nothing of the size of the layer is made.

    Args:
        site: the layer. parts: what acts there. rule: of COMBINES. choices: what it is told.
        rank: of the result; None: what comes out, or the largest of theirs where the rule compresses.
    """
    _check(site)
    read: list[Factors] = [one.adapter(type(one.adapter).factors) for one in parts]
    pairs: list[Pair] = [(one.down.flatten(1).double() * one.scale, one.up.double()) for one in read]
    pair, numbers, left = _by_pairs(pairs, read, [one.strength for one in parts], rule, choices)
    asked = rank if rank is not None else max(len(down) for down, _ in pairs) if rule.compresses else None
    most = min(site.rows, site.cols)
    lacking = whole = 0.0
    if asked is not None or len(pair[0]) > most:
        pair, lacking, whole = of_rank(pair, min(asked or most, most))
    tensors = {"down": pair[0].reshape(-1, *site.inner_shape), "up": pair[1]}
    biases = [one.bias.double() * one.scale * c for one, c in zip(read, numbers, strict=True) if one.bias is not None]
    if biases:
        tensors["bias"] = torch.stack(biases).sum(0)
    squares = {one.name: of for one, of in zip(parts, left, strict=False)}
    return Made({name: tensor.float().contiguous() for name, tensor in tensors.items()}, lacking, whole, squares)


def _by_pairs(
    pairs: Sequence[Pair], read: Sequence[Factors], weights: Sequence[float], rule: Rule, choices: Choices
) -> tuple[Pair, Sequence[float], list[tuple[float, float]]]:
    """The pair of a rule, the numbers of what is summed, and what is left of each (nothing where none loses)."""
    if rule.factors is not None:
        return rule.factors(read, weights, choices), weights, []
    if rule.pairs is not None:
        return rule.pairs(pairs, weights, choices), weights, []
    if rule.each is not None:
        rest = rule.each(pairs, weights, choices)
        squares = [(_square(after), _square(before)) for after, before in zip(rest, pairs, strict=True)]
        return stacked(rest, weights), weights, squares
    assert rule.numbers is not None, "a rule on numbers makes no pair"
    numbers = list(rule.numbers(lambda: _gram(pairs), weights))
    return stacked(pairs, numbers), numbers, []


def combined_dense(site: Site, parts: Sequence[Part], rule: Rule, choices: Choices, rank: int | None) -> Made:
    """Combines changes of any kind, as tensors of the layer's size.

    Args:
        site: the layer. parts: what acts there. rule: of COMBINES. choices: what it is told.
        rank: of the result, which is then a LoRA's; None: a full difference.

    Raises:
        DoesNotFit: a weight that a change is made of is offloaded, or not at hand.
        UnsupportedLayer: a layer that holds several.
    """
    _check(site)
    weights = [one.strength for one in parts]
    deltas = [change_of(site, one.adapter) for one in parts]
    matrices = [None if one.weight is None else site.matrix(one.weight).double() for one in deltas]
    biases = [None if one.bias is None else one.bias.double() for one in deltas]
    if rule.dense is not None:
        weight, bias = (_by_rule(some, weights, rule, choices) for some in (matrices, biases))
    else:
        assert rule.numbers is not None, "a rule for pairs alone was refused"
        flat = [
            torch.cat([one.flatten() for one in pair if one is not None]) for pair in zip(matrices, biases, strict=True)
        ]
        size = max(map(len, flat))
        rows = torch.stack([torch.nn.functional.pad(one, (0, size - len(one))) for one in flat])
        numbers = rule.numbers(lambda: rows @ rows.mT, weights)
        weight, bias = _sum(matrices, numbers), _sum(biases, numbers)
    if rank is None and not rule.compresses:
        found = {"weight": None if weight is None else site.shaped(weight), "bias": bias}
        return Made({name: one.float().contiguous() for name, one in found.items() if one is not None})
    if weight is None:
        raise DoesNotFit(f"what is combined at {site.path} changes its bias alone, which no low-rank pair does")
    asked = rank if rank is not None else max(_rank(one.adapter) for one in parts)
    (down, up), lacking, whole = rounded_to(weight, min(asked, site.rows, site.cols))
    tensors = {"down": down.reshape(-1, *site.inner_shape), "up": up} | ({} if bias is None else {"bias": bias})
    return Made({name: tensor.float().contiguous() for name, tensor in tensors.items()}, lacking, whole)


def _check(site: Site) -> None:
    if site.lead:
        raise UnsupportedLayer(
            f"{site.path} holds {site.lead[0]} weights in one tensor, and those are not combined; let them act together"
        )


def _gram(pairs: Sequence[Pair]) -> Tensor:
    """``⟨D_i, D_j⟩ = tr(up_iᵀ up_j · down_j down_iᵀ)``, ``(n, n)``."""
    rows = [
        [((up.mT @ other_up) * (down @ other_down.mT)).sum() for other_down, other_up in pairs] for down, up in pairs
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _square(pair: Pair) -> float:
    return float(_gram([pair]))


def _by_rule(tensors: Sequence[Tensor | None], weights: Sequence[float], rule: Rule, choices: Choices) -> Tensor | None:
    """By the rule, of those that are there."""
    assert rule.dense is not None, "asked before"
    there = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if tensor is not None]
    return rule.dense([one for one, _ in there], [weight for _, weight in there], choices) if there else None


def _sum(tensors: Sequence[Tensor | None], numbers: Sequence[float]) -> Tensor | None:
    there = [tensor * number for tensor, number in zip(tensors, numbers, strict=True) if tensor is not None]
    return torch.stack(there).sum(0) if there else None


def _rank(adapter: Adapter) -> int:
    config: Any = adapter.config
    return int(config.rank_at(adapter.site.path)) if hasattr(type(config), "rank_at") else 8
