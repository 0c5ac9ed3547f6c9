"""``peft.tuners.loha``."""

from studio.peft.configs.methods import LoHaConfig
from studio.peft.layers import LoHaLayer

__all__ = ["LoHaConfig", "LoHaLayer"]
