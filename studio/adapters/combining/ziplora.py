"""ZipLoRA's coefficients, found without data: a number per adapter and input column that keeps columns from meeting.

The paper learns vectors ``m_i`` so that ``Σ_i D_i diag(m_i)`` gives on each adapter's own pictures what that adapter
gives, and so that the columns that are summed do not meet. Without pictures, inputs are taken as white, and each
adapter's own as unheard by the others; then the first is ``E‖D_i diag(m_i) x − D_i x‖² = ‖D_i diag(m_i) − D_i‖²``, and
what is minimised, column by column, is

    L(m) = Σ_i ‖D_i diag(m_i) − D_i‖² + λ Σ_{i<k} Σ_j |⟨m_ij D_i[:, j], m_kj D_k[:, j]⟩|

with ``D_i`` the changes at the strengths of the blend. Columns that do not meet keep ``m = 1``, so the sum of adapters
that have nothing to do with each other stays the plain one; of two equal adapters ``λ = 2`` leaves one.

References:
    | ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs (Shah et al., 2023),
      https://arxiv.org/abs/2311.13600
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.adapters.combining.pairs import Pair
from studio.config import finite
from studio.errors import BadConfig

__all__ = ["column_weights", "ziplora"]

_ROUNDS = 60


def column_weights(pairs: Sequence[Pair], weights: Sequence[float], penalty: float) -> Tensor:
    """Returns ``m``, ``(adapters, cols)`` in float64, each in [0, 1].

    Each step puts one adapter's numbers at the least of ``L`` with the others as they are, which is
    ``m_ij = max(0, 1 − λ Σ_k |G_ik[j]| m_kj / 2 G_ii[j])`` with ``G_ik[j] = ⟨D_i[:, j], D_k[:, j]⟩``: from ``m = 1`` on
    ``L`` never rises, so that it is at most that of the plain sum. Up to ``λ = 2`` (two adapters) there is one least.

    Args:
        pairs: ``D_i / s_i``, down ``(r, cols)`` and up ``(rows, r)``. weights: the strengths s. penalty: λ, >= 0.

    Raises:
        BadConfig: a penalty that is negative or no finite number.
    """
    if not finite(penalty) or penalty < 0:
        raise BadConfig(f"penalty={penalty!r}: what meeting columns cost is a finite number from 0 on")
    products = _products(pairs, weights)
    own = products.diagonal(dim1=0, dim2=1).mT  # (adapters, cols)
    crossed = products.abs() * (1 - torch.eye(len(pairs), dtype=torch.float64))[:, :, None]
    found = torch.ones_like(own)
    for _ in range(_ROUNDS):
        before = found.clone()
        for i in range(len(pairs)):
            pull = penalty * (crossed[i] * found).sum(0) / (2 * own[i].clamp(min=torch.finfo(torch.float64).tiny))
            found[i] = (1 - pull).clamp(min=0)
        if torch.equal(found, before):
            break
    return found


def ziplora(pairs: Sequence[Pair], weights: Sequence[float], penalty: float = 1.0) -> list[Pair]:
    """Returns the pairs of ``D_i diag(m_i)``: ``down_i diag(m_i)`` and ``up_i``, at the ranks that they had.

    Args:
        pairs, weights, penalty: as of :func:`column_weights`.

    Raises:
        BadConfig: an impossible penalty.

    Example:
        >>> same = torch.ones(1, 2), torch.ones(2, 1)
        >>> (first, _), (second, _) = ziplora([same, same], [1.0, 1.0], penalty=1.0)
        >>> [round(float(one[0, 0]), 4) for one in (first, second)]
        [0.6667, 0.6667]
    """
    numbers = column_weights(pairs, weights, penalty)
    return [(down.double() * own, up.double()) for (down, up), own in zip(pairs, numbers, strict=True)]


def _products(pairs: Sequence[Pair], weights: Sequence[float]) -> Tensor:
    """``⟨s_i D_i[:, j], s_k D_k[:, j]⟩``, ``(adapters, adapters, cols)``."""
    downs = [down.double() * weight for (down, _), weight in zip(pairs, weights, strict=True)]
    ups = [up.double() for _, up in pairs]
    rows = [
        torch.stack([((up.mT @ other_up) @ other * down).sum(0) for other, other_up in zip(downs, ups, strict=True)])
        for down, up in zip(downs, ups, strict=True)
    ]
    return torch.stack(rows)
