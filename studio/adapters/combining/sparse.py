"""Rules on the changes themselves, number by number: what is dropped of each, and what is kept of their sum.

Each takes changes ``D_i`` of one shape and their strengths, and returns one of that shape. Those that PEFT has too are
in :mod:`studio.adapters.combining.numbers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.adapters.combining.numbers import linear, sign_of_majority
from studio.errors import BadConfig

__all__ = ["breadcrumbs", "della"]


def della(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, epsilon: float, generator: torch.Generator
) -> Tensor:
    """DELLA: drops numbers the likelier the smaller they are in their row, scales the rest up, and elects signs.

    A number is kept with the probability ``p = density − ε + 2 ε · k / (n − 1)``, where ``k`` is its place among the
    ``n`` of its row by magnitude, and divided by ``p``. Of what is left, those of the majority's sign are summed.

    Args:
        tensors: ``(rows, cols)`` each. weights: their strengths. density: part that is kept, in (0, 1).
        epsilon: ε, how far p departs from it; ``density ± ε`` lies in (0, 1). generator: of the draws.

    Raises:
        BadConfig: a density or an ε that leaves no probabilities.

    References:
        | DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling (Deep et al., 2024),
          https://arxiv.org/abs/2406.11617
    """
    if not (density - epsilon > 0 and density + epsilon < 1 and epsilon >= 0):
        raise BadConfig(
            f"density={density!r} and epsilon={epsilon!r}: density - epsilon and density + epsilon are in (0, 1)"
        )
    kept = []
    for tensor in tensors:
        rows = tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor[None]
        places = rows.abs().argsort(dim=1).argsort(dim=1).to(torch.float64)
        share = places / max(rows.shape[1] - 1, 1) if rows.shape[1] > 1 else torch.full_like(places, 0.5)
        chance = (density - epsilon) + 2 * epsilon * share
        drawn = torch.rand(chance.shape, generator=generator, dtype=torch.float64) < chance
        kept.append((rows * drawn.to(rows) / chance.to(rows)).reshape(tensor.shape))
    stack = torch.stack(kept)
    numbers = torch.tensor(weights, dtype=stack.dtype).reshape(-1, *(1,) * (stack.dim() - 1))
    return (stack * numbers * sign_of_majority(stack * numbers)).sum(dim=0)


def breadcrumbs(tensors: Sequence[Tensor], weights: Sequence[float], density: float, gamma: float) -> Tensor:
    """Breadcrumbs: drops the largest part γ of each and its smallest numbers, until ``density`` is left, and sums.

    Args:
        tensors: of one shape. weights: their strengths. density: part that is kept, in (0, 1].
        gamma: γ, part of the largest that is dropped, in [0, 1 - density].

    Raises:
        BadConfig: parts that leave nothing.

    References:
        | Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks (Davari & Belilovsky, 2023),
          https://arxiv.org/abs/2312.06795

    Example:
        >>> breadcrumbs([torch.tensor([4.0, 1.0, -3.0, 2.0])], [1.0], density=0.5, gamma=0.25).tolist()
        [0.0, 0.0, -3.0, 2.0]
    """
    if not (0 < density <= 1 and gamma >= 0 and density + gamma <= 1 + 1e-9):
        raise BadConfig(f"density={density!r} and gamma={gamma!r}: density is in (0, 1], and gamma in [0, 1 - density]")
    kept = []
    for tensor in tensors:
        flat = tensor.reshape(-1)
        order = flat.abs().argsort(descending=True)
        first = round(gamma * len(flat))
        places = order[first : first + max(1, round(density * len(flat)))]
        one = torch.zeros_like(flat)
        one[places] = flat[places]
        kept.append(one.reshape(tensor.shape))
    return linear(kept, weights)
