"""``peft.tuners.lora``."""

from studio.peft.configs.methods import CordaConfig, EvaConfig, LoftQConfig, LoraConfig, LoraRuntimeConfig
from studio.peft.layers import LoraLayer
from studio.peft.tuner import LoraModel

__all__ = ["CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraLayer", "LoraModel", "LoraRuntimeConfig"]
