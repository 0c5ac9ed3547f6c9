"""KnOTS: the changes are brought into one basis before their numbers are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.adapters.combining.numbers import ties
from studio.adapters.combining.pairs import Pair

__all__ = ["knots"]

_SMALLEST = 1e-7  # of a singular value, as a part of the largest


def knots(pairs: Sequence[Pair], weights: Sequence[float], density: float, signs: str = "total") -> Pair:
    """Returns the pair of ``U · ties(S V_1, …, S V_n)``, where ``[s_1 D_1 … s_n D_n] = U S [V_1 … V_n]``.

    A pair stays one: its rank is at most the sum of theirs, and nothing of the size of a layer is made.

    Args:
        pairs: ``D_i = up_i @ down_i``, down ``(r, cols)`` and up ``(rows, r)``. weights: the strengths s.
        density: part of the numbers that TIES keeps. signs: as :func:`~studio.adapters.combining.numbers.ties` has it.

    References:
        | Model merging with SVD to tie the Knots (Stoica et al., 2024), https://arxiv.org/abs/2410.19735
    """
    ups = torch.cat([up.double() for _, up in pairs], dim=1)
    left, upper = torch.linalg.qr(ups)
    parts, first = [], 0
    for (down, up), weight in zip(pairs, weights, strict=True):
        parts.append(upper[:, first : first + up.shape[1]] @ down.double() * weight)
        first += up.shape[1]
    side = torch.cat(parts, dim=1)
    u, values, vh = torch.linalg.svd(side, full_matrices=False)
    kept = values > _SMALLEST * values.max().clamp(min=torch.finfo(torch.float64).tiny)
    shared: Tensor = values[kept, None] * vh[kept]
    merged = ties(list(shared.chunk(len(pairs), dim=1)), [1.0] * len(pairs), density, signs)
    return merged.contiguous(), (left @ u[:, kept]).contiguous()
