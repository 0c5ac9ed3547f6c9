"""``peft.tuners.lokr``."""

from studio.peft.layers import LoKrLayer
from studio.peft.method_configs import LoKrConfig

__all__ = ["LoKrConfig", "LoKrLayer"]
