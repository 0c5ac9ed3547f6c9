"""Combining tensors of several adapters into one: pure functions, which know nothing of layers or methods.

Each takes tensors ``t_i`` of one shape and numbers ``w_i``, and returns one tensor of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from studio.errors import BadConfig

__all__ = [
    "COMBINERS",
    "dare_linear",
    "dare_ties",
    "linear",
    "magnitude_prune",
    "sign_of_majority",
    "ties",
    "truncated",
]

Signs = str


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    stack = torch.stack(list(tensors))
    numbers = torch.tensor(weights, dtype=stack.dtype, device=stack.device)
    return stack * numbers.reshape(-1, *(1,) * (stack.dim() - 1))


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise BadConfig(f"density={density!r} must be a part of the numbers that is kept, in (0, 1]")


def largest(tensor: Tensor, density: float) -> Tensor:
    """Keeps the ``density`` of the numbers that are largest in magnitude; the others become 0.

    Example:
        >>> largest(torch.tensor([3.0, -1.0, 2.0, 0.5]), 0.5).tolist()
        [3.0, 0.0, 2.0, 0.0]
    """
    _check_density(density)
    count = int(density * tensor.numel())
    kept = torch.zeros_like(tensor).reshape(-1)
    places = tensor.abs().reshape(-1).topk(count).indices
    kept[places] = tensor.reshape(-1)[places]
    return kept.reshape(tensor.shape)


def dropped(tensor: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """Keeps each number with the probability ``density``, divided by it, so that the mean stays."""
    _check_density(density)
    chances = torch.full(tensor.shape, density, device="cpu")
    return tensor * torch.bernoulli(chances, generator=generator).to(tensor) / density


def sign_of_majority(stack: Tensor, signs: Signs = "total") -> Tensor:
    """Says for each number whether it has the sign that most have.

    Args:
        stack: tensors ``(n, ...)``. signs: "total" (the sign of the sum) or "frequency" (of the sum of the signs);
            where they are even, plus is taken.

    Raises:
        BadConfig: another word.
    """
    if signs not in ("total", "frequency"):
        raise BadConfig(f"the sign of the majority is found by 'total' or 'frequency', not {signs!r}")
    own = stack.sign()
    positive = (stack if signs == "total" else own).sum(dim=0) >= 0
    return own == torch.where(positive, 1.0, -1.0)


def _agreeing(stack: Tensor, weights: Sequence[float], signs: Signs) -> Tensor:
    """The mean of those numbers whose sign is the majority's."""
    mask = sign_of_majority(stack, signs)
    total = (_weighted(list(stack), weights) * mask).sum(dim=0)
    return total / mask.sum(dim=0).clamp(min=1)


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum ``Σ w_i t_i``.

    Example:
        >>> linear([torch.ones(2), torch.ones(2)], [0.5, 2.0]).tolist()
        [2.5, 2.5]
    """
    return _weighted(tensors, weights).sum(dim=0)


def magnitude_prune(tensors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """The weighted sum of what is left of each after its smaller numbers are set to 0."""
    return linear([largest(tensor, density) for tensor in tensors], weights)


def ties(tensors: Sequence[Tensor], weights: Sequence[float], density: float, signs: Signs = "total") -> Tensor:
    """TIES: prunes each, elects a sign for every number, and takes the mean of those that have it.

    References:
        | TIES-Merging: Resolving Interference When Merging Models (Yadav et al., 2023), https://arxiv.org/abs/2306.01708
    """
    return _agreeing(torch.stack([largest(tensor, density) for tensor in tensors]), weights, signs)


def dare_linear(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator | None = None
) -> Tensor:
    """DARE: the weighted sum after numbers are dropped at random and the rest is scaled up.

    References:
        | Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch (Yu et al., 2023),
          https://arxiv.org/abs/2311.03099
    """
    return linear([dropped(tensor, density, generator) for tensor in tensors], weights)


def dare_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    signs: Signs = "total",
    generator: torch.Generator | None = None,
) -> Tensor:
    """DARE's dropping, then TIES' election of signs."""
    return _agreeing(torch.stack([dropped(tensor, density, generator) for tensor in tensors]), weights, signs)


COMBINERS: Final[dict[str, Callable[..., Tensor]]] = {
    "linear": linear,
    "magnitude_prune": magnitude_prune,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
"""Name -> function of (tensors, weights, and for all but the first a density)."""


def truncated(matrix: Tensor, rank: int, clamp: float | None = None) -> tuple[Tensor, Tensor]:
    """Returns ``(down, up)`` of the best approximation ``up @ down`` of ``matrix`` with that rank.

    Args:
        matrix: ``(rows, cols)``. rank: at most the smaller side.
        clamp: cut the factors off at this quantile of their numbers; None does not.

    Raises:
        BadConfig: a rank that the matrix does not have.

    Example:
        >>> matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> down, up = truncated(matrix, 1)
        >>> (up @ down).round().tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    most = min(matrix.shape)
    if not 1 <= rank <= most:
        raise BadConfig(f"rank {rank} of a {matrix.shape[0]} x {matrix.shape[1]} matrix; it must be in 1 .. {most}")
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    up, down = u[:, :rank] * s[:rank], vh[:rank]
    if clamp is not None:
        most_ = torch.quantile(torch.cat([up.flatten(), down.flatten()]), clamp)
        up, down = up.clamp(-most_, most_), down.clamp(-most_, most_)
    return down.contiguous(), up.contiguous()
