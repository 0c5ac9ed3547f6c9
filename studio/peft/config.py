"""``peft.config``."""

from studio.peft.configs.config import PeftConfig, PromptLearningConfig

__all__ = ["PeftConfig", "PromptLearningConfig"]
