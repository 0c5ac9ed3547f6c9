"""``peft.tuners.lokr.layer``."""

from studio.files.peft_lokr import peft_split as factorization
from studio.peft.layers import LoKrLayer

__all__ = ["LoKrLayer", "factorization"]
