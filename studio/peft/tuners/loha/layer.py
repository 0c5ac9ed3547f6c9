"""``peft.tuners.loha.layer``."""

from studio.peft.layers import LoHaLayer

__all__ = ["LoHaLayer"]
