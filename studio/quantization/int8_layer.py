"""bitsandbytes' 8-bit layer that computes with its weight as it is, in training and in evaluation alike.

It is imported only once bitsandbytes is known to be there.
"""

from __future__ import annotations

from bitsandbytes.nn import Linear8bitLt
from torch import Tensor

from studio.quantization.bnb import LLM_INT8

__all__ = ["ExactLinear8bit"]


class ExactLinear8bit(Linear8bitLt):
    """``Linear8bitLt`` whose inputs are not rounded to 8 bits in evaluation where that gains nothing (CPU, fp32)."""

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``x Wᵀ + b`` of ``x`` ``(..., in_features)``."""
        return LLM_INT8.product(self, Linear8bitLt.forward, x)
