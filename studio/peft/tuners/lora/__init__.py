"""``peft.tuners.lora``."""

from studio.peft.layers import LoraLayer
from studio.peft.method_configs import CordaConfig, EvaConfig, LoftQConfig, LoraConfig, LoraRuntimeConfig
from studio.peft.tuner import LoraModel

__all__ = ["CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraLayer", "LoraModel", "LoraRuntimeConfig"]
