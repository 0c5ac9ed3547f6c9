r"""Heads that a plain model lacks: made from a formula, so that the base is the same one wherever it is opened.

Row i of a weight ``(rows, columns)`` is the i-th cosine of the orthonormal discrete cosine transform, stretched to the
length that rows of the model's own start have on average::

    W[i, j] = σ √columns · √(2 / columns) cos(π (j + 1/2) (i + 1) / columns)

with σ the ``initializer_range`` of its config (0.02 where it has none). Rows are orthogonal up to ``columns - 1`` of
them; biases are zero, and the weights of norms one. Nothing is drawn: an adapter with a trained head is a difference to
these very numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["cosine_rows", "head_layers", "make_head"]


def cosine_rows(rows: int, columns: int, deviation: float = 0.02) -> Tensor:
    """Returns the weight ``(rows, columns)`` in fp32 that the module's formula gives.

    Args:
        rows, columns: its shape. deviation: σ.

    Example:
        >>> made = cosine_rows(2, 8)
        >>> bool((made @ made.T - 8 * 0.02**2 * torch.eye(2)).abs().max() < 1e-9)
        True
    """
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(columns, dtype=torch.float64)[None]
    made = deviation * math.sqrt(2) * torch.cos(math.pi * (j + 0.5) * (i + 1) / columns)
    return made.float()


def head_layers(model: Any) -> tuple[str, ...]:
    """Returns the paths of the linear layers of a classifier's head: those outside its body.

    Args:
        model: a classifier of transformers.
    """
    body = model.base_model_prefix
    return tuple(
        path for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.partition(".")[0] != body
    )  # fmt: skip


def make_head(model: Any, missing: Iterable[str]) -> Sequence[str]:
    """Gives a head, and the pooler before it, the formula's weights where the files have none.

    Args:
        model: a classifier of transformers.
        missing: names of the tensors that the files lack.

    Returns:
        The layers that were made.
    """
    deviation = float(getattr(model.config, "initializer_range", None) or 0.02)
    made: dict[str, None] = {}
    for name in sorted(missing):
        path, _, tensor = name.rpartition(".")
        held = getattr(model.get_submodule(path), tensor)
        with torch.no_grad():
            if held.dim() == 2:
                held.copy_(cosine_rows(held.shape[0], held.shape[1], deviation))
            else:
                held.fill_(float(tensor == "weight"))  # of a norm, which changes nothing but the scale
        made[path] = None
    return list(made)
