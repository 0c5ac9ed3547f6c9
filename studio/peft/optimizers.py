"""``peft.optimizers``."""

from studio.peft.optim import LoraFAOptimizer, create_lorafa_optimizer, create_loraplus_optimizer

__all__ = ["LoraFAOptimizer", "create_lorafa_optimizer", "create_loraplus_optimizer"]
