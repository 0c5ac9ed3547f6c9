"""``peft.tuners.lora.config``."""

from studio.peft.method_configs import CordaConfig, EvaConfig, LoftQConfig, LoraConfig, LoraRuntimeConfig

__all__ = ["CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraRuntimeConfig"]
