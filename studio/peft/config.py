"""``peft.config``."""

from studio.peft.configs import PeftConfig, PromptLearningConfig

__all__ = ["PeftConfig", "PromptLearningConfig"]
