"""``peft.tuners.lora.config``."""

from studio.peft.configs.methods import CordaConfig, EvaConfig, LoftQConfig, LoraConfig, LoraRuntimeConfig

__all__ = ["CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraRuntimeConfig"]
