"""``peft.tuners.lokr``."""

from studio.peft.configs.methods import LoKrConfig
from studio.peft.layers import LoKrLayer

__all__ = ["LoKrConfig", "LoKrLayer"]
