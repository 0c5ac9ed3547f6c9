"""Orthogonalised sums: what the pairs before it do already is taken from each pair, and the rest is summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.adapters.combining.pairs import Pair
from studio.errors import BadConfig

__all__ = ["SIDES", "orthogonal"]

SIDES = ("outputs", "inputs", "both")
_SMALLEST = 1e-9  # of a direction, as a part of what it was before the projection: below, it is rounding


def orthogonal(pairs: Sequence[Pair], sides: str = "outputs") -> list[Pair]:
    """Returns the pairs, each without what lies in the spaces of those before it (Gram & Schmidt, in their order).

    With ``Q`` an orthonormal basis of all columns of ``up_1 … up_(i-1)``: ``up_i' = up_i − Q Qᵀ up_i``, for the side of
    the outputs; for the inputs the same of the rows of ``down``. Either makes ``⟨D_i', D_j'⟩ = 0`` for all ``i ≠ j``,
    ranks stay what they were, and the first pair stays as it is.

    Args:
        pairs: ``D_i = up_i @ down_i``, down ``(r, cols)`` and up ``(rows, r)``.
        sides: ``"outputs"``, ``"inputs"`` or ``"both"``: where they are kept apart.

    Raises:
        BadConfig: another word.

    References:
        | Orthogonal Adaptation for Modular Customization of Diffusion Models (Po et al., 2023),
          https://arxiv.org/abs/2312.02432, which trains in such spaces; here they are made afterwards

    Example:
        >>> one = torch.eye(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> two = torch.ones(1, 3), torch.tensor([[3.0], [0.0], [4.0]])
        >>> _, (down, up) = orthogonal([one, two])
        >>> up.flatten().tolist()
        [0.0, 0.0, 4.0]
    """
    if sides not in SIDES:
        raise BadConfig(f"sides={sides!r}: adapters are kept apart by {', '.join(SIDES[:-1])} or {SIDES[-1]}")
    ups, downs = [up.double() for _, up in pairs], [down.double() for down, _ in pairs]
    if sides != "inputs":
        ups = _apart(ups)
    if sides != "outputs":
        downs = [one.mT for one in _apart([down.mT for down in downs])]
    return list(zip(downs, ups, strict=True))


def _apart(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix ``(size, r)`` without what lies in the columns of those before it."""
    found: list[Tensor] = []
    basis = matrices[0].new_zeros(len(matrices[0]), 0)
    for matrix in matrices:
        left = matrix - basis @ (basis.mT @ matrix)
        left = left - basis @ (basis.mT @ left)  # once more: what rounding has left of it
        found.append(left)
        u, values, _ = torch.linalg.svd(left, full_matrices=False)
        basis = torch.cat([basis, u[:, values > _SMALLEST * torch.linalg.matrix_norm(matrix, 2)]], dim=1)
    return found
