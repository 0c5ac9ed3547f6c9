"""Methods that other programs have and the studio has not, by the ends of their keys.

The registered methods are asked first: a method that is added here one day is read, whatever this table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ELSEWHERE"]

_TLORA: Final = "T-LoRA, which subtracts its start and leaves that out of its files: they do not say what it changes"

ELSEWHERE: Final[Mapping[str, str]] = {
    "bm.weight": "GLoRA with a core",
    "set_weight": "a replaced weight",
    "c3a_kernel": "C3A",
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), _TLORA),
}
"""End of a key -> what it is of, in words."""
