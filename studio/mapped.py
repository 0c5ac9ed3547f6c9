"""Memory of files that are mapped: pages that were read once are let go, and come back from the file when asked for."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from array import array
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["let_pages_go"]

_PAGEMAP: Final = Path("/proc/self/pagemap")
_SHIFT: Final = 61
_HARMLESS: Final = frozenset({0b000, 0b101})
"""Highest three bits of a page's entry (is present, is swapped, is of a file): not there, or of a file as it stands."""


def let_pages_go(tensor: Tensor) -> bool:
    """Lets the memory of a tensor go that is mapped from a file, and holds nothing but what the file holds.

    A base is mapped, not read: its pages count as this process's memory from the first time that they are touched for
    as long as one tensor of the file lives. Whoever reads a base once from end to end (to hash it, to quantise it)
    calls this behind each tensor, and holds one of them instead of all. The values stay: the next one who asks for them
    has them from the file again. A page that was written to is the process's own, and stays; nobody else may be
    writing to the tensor meanwhile.

    Args:
        tensor: of any shape; of what is in memory of its own, or elsewhere than in the CPU's, nothing happens.

    Returns:
        Whether the pages were let go; never where the system does not tell what they are (other than Linux).

    Example:
        >>> let_pages_go(torch.zeros(1 << 16))
        False
    """
    if sys.platform != "linux" or type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout != torch.strided or not tensor.numel():
        return False
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr() // mmap.PAGESIZE
    count = -(-(tensor.data_ptr() + span * tensor.itemsize) // mmap.PAGESIZE) - first
    if not _of_a_file(first, count):
        return False
    address, size = first * mmap.PAGESIZE, count * mmap.PAGESIZE
    return bool(_library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED) == 0)


def _of_a_file(first: int, count: int) -> bool:
    """Says whether there are pages of a file among so many, and none that are not."""
    entries = array("Q")
    try:
        with _PAGEMAP.open("rb", buffering=0) as stream:
            stream.seek(first * entries.itemsize)
            entries.frombytes(stream.read(count * entries.itemsize))
    except (OSError, ValueError):  # a system that does not tell, or stops within an entry
        return False
    kinds = {entry >> _SHIFT for entry in entries}
    return len(entries) == count and kinds <= _HARMLESS and kinds != {0}


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    return ctypes.CDLL(None)
