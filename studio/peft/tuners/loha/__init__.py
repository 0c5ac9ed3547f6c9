"""``peft.tuners.loha``."""

from studio.peft.layers import LoHaLayer
from studio.peft.method_configs import LoHaConfig

__all__ = ["LoHaConfig", "LoHaLayer"]
