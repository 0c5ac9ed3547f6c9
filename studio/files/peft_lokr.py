"""The shapes of LoKr's tensors in PEFT.

PEFT makes the tensors from its config before it reads them from the file, so the config has to lead to the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from studio.adapters import Site
from studio.errors import DoesNotFit
from studio.files.format import Saved

__all__ = ["decompose_factor", "peft_split"]


def decompose_factor(saved: Saved) -> int:
    """Finds the ``decompose_factor`` with which PEFT makes exactly the tensors that an adapter has.

    Raises:
        DoesNotFit: there is none.
    """
    config: Any = saved.config
    rows = {path: _rows_of_w1(tensors) for path, tensors in saved.layers.items()}
    cored = bool(saved.stated.get("use_effective_conv2d"))
    small = {min(saved.sites[path].rows // count, count) for path, count in rows.items()}
    wrong = ""
    for factor in (config.factor, -1, *sorted(small)):
        wrong = next(
            (
                path
                for path, tensors in saved.layers.items()
                if _peft_shapes(config, saved.sites[path], factor, cored)
                != {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            ),
            "",
        )
        if not wrong:
            return int(factor)
    raise DoesNotFit(
        f"PEFT would give the LoKr tensors of {wrong} other shapes than they have and then refuse the file; "
        "save with format='diffusers' or 'kohya'"
    )


def _rows_of_w1(tensors: Mapping[str, Tensor]) -> int:
    return int(tensors["w1" if "w1" in tensors else "w1_a"].shape[0])


def _peft_shapes(config: Any, site: Site, factor: int, cored: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT makes at a site."""
    kernel, rank = site.inner_shape[1:], config.rank_at(site.path)
    taps = math.prod(kernel)
    (a, c), (b, d) = peft_split(site.rows, factor), peft_split(site.inner_shape[0], factor)
    shapes: dict[str, tuple[int, ...]] = {"w1": (a, b)}
    if config.decompose_both and rank < max(a, b) / 2:
        shapes = {"w1_a": (a, rank), "w1_b": (rank, b)}
    if rank >= max(c, d) / 2:
        return shapes | {"w2": (c, d, *kernel)}
    if cored and taps > 1:
        core = (rank, rank, *kernel, 1) if len(kernel) == 1 else (rank, rank, *kernel)
        return shapes | {"w2_t": core, "w2_a": (rank, c), "w2_b": (rank, d)}
    return shapes | {"w2_a": (c, rank), "w2_b": (rank, d * taps)}


def peft_split(size: int, factor: int) -> tuple[int, int]:
    """Splits a size as PEFT does: a factor that divides it comes first, even if it is the larger part."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    small = next(part for part in range(most, 0, -1) if size % part == 0)
    return small, size // small
