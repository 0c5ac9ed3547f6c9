"""Sums whose numbers follow from lengths and angles: functions of the Gram matrix ``G_ij = ⟨D_i, D_j⟩`` of a layer.

Each returns the numbers ``c_i`` of ``Σ c_i D_i``, so that a sum of low-rank pairs stays one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from studio.errors import BadConfig

__all__ = ["karcher", "model_stock", "slerp"]

_PARALLEL = 0.9995  # from this cosine on sin θ is too small to divide by, and the chord is as good as the arc
_ROUNDS = 100


def slerp(gram: Tensor, weights: Sequence[float]) -> list[float]:
    """Spherical interpolation: ``(s_1 + s_2) · (sin((1−t)θ) D_1 + sin(tθ) D_2) / sin θ``, ``t = s_2 / (s_1 + s_2)``.

    θ is the angle between the two; where they are nearly parallel, or one is 0 or not there, the sum is the plain one.

    Args:
        gram: ``(2, 2)`` in float64, or ``(1, 1)`` of one alone. weights: the strengths s.

    Raises:
        BadConfig: more than two, or strengths whose sum is 0.

    References:
        | Animating rotation with quaternion curves (Shoemake, 1985)

    Example:
        >>> [round(c, 4) for c in slerp(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), [0.5, 0.5])]
        [0.7071, 0.7071]
    """
    if len(weights) == 1:
        return list(weights)
    if len(weights) != 2 or not sum(weights):
        raise BadConfig("slerp goes from one adapter to one other, at strengths whose sum is not 0")
    whole = sum(weights)
    t = weights[1] / whole
    length = (gram[0, 0] * gram[1, 1]).clamp(min=0).sqrt()
    cosine = float(gram[0, 1] / length) if length > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return list(weights)
    angle = math.acos(cosine)
    return [whole * math.sin((1 - t) * angle) / math.sin(angle), whole * math.sin(t * angle) / math.sin(angle)]


def karcher(gram: Tensor, weights: Sequence[float]) -> list[float]:
    """The mean of several on the sphere: the direction in which ``Σ |s_i| θ_i²`` is least, of their mean length.

    Lengths are averaged by ``|s_i|`` and the result is ``Σ |s_i|`` times as long; a negative strength turns its adapter
    around. Two with equal strengths give the direction of :func:`slerp` at ``t = 1/2``.

    Args:
        gram: ``(n, n)`` in float64. weights: the strengths s.

    References:
        | Riemannian center of mass and mollifier smoothing (Karcher, 1977)

    Example:
        >>> [round(c, 4) for c in karcher(torch.eye(2, dtype=torch.float64), [0.5, 0.5])]
        [0.7071, 0.7071]
    """
    lengths = gram.diagonal().clamp(min=0).sqrt()
    sizes = torch.tensor([abs(weight) for weight in weights], dtype=torch.float64) * (lengths > 0)
    if not sizes.sum():
        return [0.0 for _ in weights]
    signs = torch.tensor([math.copysign(1.0, weight) for weight in weights], dtype=torch.float64)
    scale = signs / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    unit = gram * scale[:, None] * scale  # cosines between the turned directions
    part = sizes / sizes.sum()
    mean = part / (part @ unit @ part).clamp(min=1e-30).sqrt()
    for _ in range(_ROUNDS):
        cosines = (unit @ mean).clamp(-1, 1)
        angles = cosines.acos()
        ratio = torch.where(angles > 1e-12, angles / angles.sin().clamp(min=1e-12), 1.0)
        step = part * ratio  # Σ p_i log_mean(u_i) = Σ p_i ratio_i (u_i − cos_i mean)
        tangent = step - (step * cosines).sum() * mean
        size = float((tangent @ unit @ tangent).clamp(min=0).sqrt())
        if size < 1e-12:
            break
        mean = math.cos(size) * mean + math.sin(size) * tangent / size
        mean = mean / (mean @ unit @ mean).clamp(min=1e-30).sqrt()
    length = float((part * lengths).sum() * sizes.sum())
    return [float(number) for number in mean * scale * length]


def model_stock(gram: Tensor, weights: Sequence[float]) -> list[float]:
    """Model Stock: ``t · mean(s_i D_i)`` with ``t = n cos / (1 + (n − 1) cos)``, cos the mean cosine between two.

    Where they do not meet, ``t = 0`` and the base stays; where they are equal, ``t = 1``.

    Args:
        gram: ``(n, n)`` in float64. weights: the strengths s.

    References:
        | Model Stock: All we need is just a few fine-tuned models (Jang, Yun & Han, 2024), https://arxiv.org/abs/2403.19522

    Example:
        >>> [round(2 * c, 4) for c in model_stock(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), [1.0, 1.0])]
        [0.8284, 0.8284]
    """
    count = len(weights)
    lengths = gram.diagonal().clamp(min=0).sqrt()
    pairs = [(i, j) for i in range(count) for j in range(i) if lengths[i] > 0 and lengths[j] > 0]
    if not pairs:
        return [weight / count for weight in weights]
    cosine = sum(float(gram[i, j] / (lengths[i] * lengths[j])) for i, j in pairs) / len(pairs)
    below = 1 + (count - 1) * cosine
    t = count * cosine / below if below > 1e-6 else 0.0
    return [max(t, 0.0) * weight / count for weight in weights]
