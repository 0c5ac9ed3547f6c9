"""In which type a base computes where nothing else is asked for: the one of its files, where that makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from studio.device import choose_dtype, dtype_named, has_dtype

__all__ = ["AUTO", "SMALL", "by_component", "named", "usual_dtype"]

AUTO: Final = "auto"

SMALL: Final = 6 << 30
"""Bytes in fp32 up to which a base computes in fp32 on a CPU, whatever its files hold."""

_HALVES: Final = (torch.float16, torch.bfloat16)


def named(asked: torch.dtype | str | None) -> torch.dtype | str | None:
    """Returns the type that a word means; ``None`` and ``"auto"`` stay as they are.

    Raises:
        UnknownName: no such type.
    """
    return asked if asked is None or asked == AUTO else dtype_named(asked)


def usual_dtype(
    counts: Mapping[torch.dtype, int], device: torch.device, asked: torch.dtype | str | None = None
) -> torch.dtype:
    """Returns the type that a base is read in.

    Args:
        counts: how many numbers of each floating type its files hold.
        device: where it will compute.
        asked: a type, which is taken; ``None``: what most of the numbers are, but fp32 for a small base on a CPU, and a
            type that the device has; ``"auto"``: the same, and on other devices what they compute fastest in in place
            of fp32.

    Example:
        >>> cpu, million = torch.device("cpu"), 1_000_000
        >>> usual_dtype({torch.float16: 860 * million}, cpu), usual_dtype({torch.bfloat16: 12_000 * million}, cpu)
        (torch.float32, torch.bfloat16)
    """
    if isinstance(asked, torch.dtype):
        return asked
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    if most.itemsize == 1:  # fp8 is a way to store: nothing computes in it
        most = torch.bfloat16
    if device.type == "cpu" and 4 * sum(counts.values()) <= SMALL:
        return torch.float32
    if most in _HALVES:
        return most if has_dtype(most, device) else choose_dtype(most, device).dtype
    if asked == AUTO:
        return choose_dtype(None, device).dtype
    return torch.float32


def by_component(dtype: torch.dtype, needs: Mapping[str, str]) -> dict[str, torch.dtype]:
    """Returns the type of each component, and under ``"default"`` that of the others.

    Args:
        dtype: the base's.
        needs: component -> the type that it needs where the others are fp16.

    Example:
        >>> by_component(torch.float16, {"vae": "float32"})
        {'default': torch.float16, 'vae': torch.float32}
    """
    own = {name: dtype_named(word) for name, word in needs.items()} if dtype is torch.float16 else {}
    return {"default": dtype, **own}
