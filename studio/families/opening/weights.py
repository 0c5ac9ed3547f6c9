"""What the headers of weight files say: which tensors, of which type, and where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from studio.claims import DTYPES, Header, checked_header
from studio.errors import BadFile
from studio.given import open_given

__all__ = ["Weights", "held", "header_of"]

Weights = Mapping[str, tuple[Path, ...]]
"""The files of a base's weights, by component; "" is what one file holds of all."""


def header_of(file: Path) -> Header:
    """Reads and checks the header of a safetensors file; no tensor is read.

    Raises:
        BadFile: it is missing, truncated, or says something about itself that cannot be true.
    """
    try:
        with open_given(file) as stream:
            return checked_header(file, stream, stream.seek(0, 2))
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror or problem}") from problem


def held(headers: Iterable[Header]) -> dict[torch.dtype, int]:
    """Returns how many numbers of each floating type there are, most first."""
    counts: Counter[torch.dtype] = Counter()
    for header in headers:
        for info in header.tensors.values():
            dtype = DTYPES[info.dtype]
            if dtype.is_floating_point:
                counts[dtype] += (info.end - info.begin) // dtype.itemsize
    return dict(counts.most_common())
