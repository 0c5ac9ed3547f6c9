"""Low-rank pairs as exact numbers: stacked, and brought to a rank by a QR of each side and a small SVD.

With ``D_i = up_i @ down_i`` the sum ``Σ c_i D_i`` is the pair ``[c_1 up_1 … c_n up_n]``, ``[down_1; …; down_n]`` of
rank ``R = Σ r_i``. From ``up = Q_u R_u`` and ``downᵀ = Q_d R_d`` follows ``up @ down = Q_u (R_u R_dᵀ) Q_dᵀ``: the SVD
of an ``R × R`` matrix is that of the whole, and its first ``k`` values are the best approximation of rank ``k``.

References:
    | The approximation of one matrix by another of lower rank (Eckart & Young, 1936)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.errors import BadConfig

__all__ = ["Pair", "of_rank", "rounded_to", "stacked"]

Pair = tuple[Tensor, Tensor]
"""``down`` ``(r, cols)`` and ``up`` ``(rows, r)``."""


def stacked(pairs: Sequence[Pair], numbers: Sequence[float]) -> Pair:
    """Returns the pair of ``Σ c_i up_i @ down_i``, in float64.

    Args:
        pairs: of matrices of one size. numbers: one for each.

    Example:
        >>> one, two = (torch.ones(1, 3), torch.ones(2, 1)), (torch.ones(1, 3), torch.ones(2, 1))
        >>> down, up = stacked([one, two], [2.0, -0.5])
        >>> (up @ down).tolist()
        [[1.5, 1.5, 1.5], [1.5, 1.5, 1.5]]
    """
    downs, ups = [down.double() for down, _ in pairs], [up.double() for _, up in pairs]
    return torch.cat(downs), torch.cat([up * number for up, number in zip(ups, numbers, strict=True)], dim=1)


def of_rank(pair: Pair, rank: int) -> tuple[Pair, float, float]:
    """Returns the best pair of a rank, the square of what it lacks, and the square of the whole.

    Args:
        pair: down ``(R, cols)`` and up ``(rows, R)``. rank: at most ``min(R, rows, cols)`` is used.

    Raises:
        BadConfig: a rank below 1.

    Example:
        >>> down, up = torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> _, lacking, whole = of_rank((down, up), 1)
        >>> round(lacking), round(whole)
        (9, 25)
    """
    if rank < 1:
        raise BadConfig(f"rank={rank}: a rank is a whole number from 1 on")
    down, up = (one.double() for one in pair)
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.mT)
    u, values, vh = torch.linalg.svd(upper @ lower.mT)
    squares = values.square()
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    best = (root[:, None] * (vh[:kept] @ right.mT)).contiguous(), (left @ u[:, :kept] * root).contiguous()
    return best, float(squares[kept:].sum()), float(squares.sum())


def rounded_to(matrix: Tensor, rank: int) -> tuple[Pair, float, float]:
    """The same as :func:`of_rank` of a matrix ``(rows, cols)``.

    Raises:
        BadConfig: a rank below 1.
    """
    if rank < 1:
        raise BadConfig(f"rank={rank}: a rank is a whole number from 1 on")
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept, squares = min(rank, len(values)), values.square()
    root = values[:kept].sqrt()
    best = (root[:, None] * vh[:kept]).contiguous(), (u[:, :kept] * root).contiguous()
    return best, float(squares[kept:].sum()), float(squares.sum())
