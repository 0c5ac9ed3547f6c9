"""``peft.tuners.lora.layer``."""

from studio.peft.layers import LoraLayer

__all__ = ["LoraLayer"]
