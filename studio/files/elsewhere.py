"""Methods that other programs have and the studio has not, by the ends of their keys.

The registered methods are asked first: a method that is added here one day is read, whatever this table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ELSEWHERE"]

ELSEWHERE: Final[Mapping[str, str]] = {
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "bm.weight": "GLoRA",
    "diff": "a full difference of the weight",
    "set_weight": "a replaced weight",
    "w_norm": "a trained normalisation",
    "b_norm": "a trained normalisation",
    "c3a_kernel": "C3A",
}
"""End of a key -> what it is of, in words."""
