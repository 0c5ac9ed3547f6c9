"""``peft.tuners.tuners_utils``."""

from studio.peft.layers import BaseTunerLayer
from studio.peft.tuner import BaseTuner

__all__ = ["BaseTuner", "BaseTunerLayer"]
