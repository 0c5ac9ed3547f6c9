"""Bytes in words, and words as bytes."""

from __future__ import annotations

import re
from typing import Final

from studio.errors import BadConfig

__all__ = ["as_bytes", "in_words"]

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
                 "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def in_words(size: float) -> str:
    """Returns a size as people say it; a GB is 10⁹ bytes.

    Example:
        >>> in_words(8_138_000_000), in_words(13_400_000), in_words(900)
        ('8.14 GB', '13 MB', '0.9 kB')
    """
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def as_bytes(asked: str | float) -> int:
    """Returns the bytes that a word means: ``"12GB"`` (10⁹), ``"12GiB"`` (2³⁰), ``"800 MB"``; a bare number is in GB.

    Raises:
        BadConfig: it is no size.

    Example:
        >>> as_bytes("12GB"), as_bytes("1.5 GiB"), as_bytes(8)
        (12000000000, 1610612736, 8000000000)
        >>> as_bytes("much")
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: 'much' is no size of memory: write 12GB or 11.5GiB
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)?\s*", str(asked), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise BadConfig(f"{str(asked)[:60]!r} is no size of memory: write 12GB or 11.5GiB")
    return round(float(found[1]) * _UNITS[(found[2] or "gb").lower()])
