"""Memory that quantising a large base would keep for nothing: mapped files, and what the C library holds back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection
from typing import Any

from torch import nn

from studio.mapped import let_pages_go

__all__ = ["give_back", "let_files_go"]


def let_files_go(root: nn.Module, quantized: Collection[nn.Module]) -> None:
    """Copies what stays as it is out of the files that it is mapped from, so that each of them can be closed.

    A shard stays mapped, and its pages count as memory, as long as one norm is a view into it.

    Args:
        root: the model. quantized: layers that will be quantised, whose weight is read once.
    """
    apart, done = set(map(id, quantized)), set[int]()
    for module in root.modules():
        for name, held in (*module._parameters.items(), *module._buffers.items()):
            if held is None or held.device.type != "cpu" or (id(module) in apart and name == "weight"):
                continue
            if id(held) not in done:
                mapped, held.data = held.data, held.data.clone()
                let_pages_go(mapped)
                done.add(id(held))


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    try:
        found = ctypes.CDLL("libc.so.6")
        return found if found.malloc_trim is not None else None
    except (OSError, AttributeError):  # another C library, which keeps less
        return None


def give_back() -> None:
    """Returns freed memory to the system, where the C library keeps it (glibc)."""
    if _library() is not None:
        _library().malloc_trim(0)
