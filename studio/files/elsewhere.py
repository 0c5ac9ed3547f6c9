"""Methods that other programs have and the studio has not, by the ends of their keys.

The registered methods are asked first: a method that is added here one day is read, whatever this table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ELSEWHERE"]

ELSEWHERE: Final[Mapping[str, str]] = {
    "bm.weight": "GLoRA with a core",
    "set_weight": "a replaced weight",
    "c3a_kernel": "C3A",
}
"""End of a key -> what it is of, in words."""
