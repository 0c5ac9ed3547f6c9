"""``peft.mixed_model``."""

from studio.peft.wrapper import PeftMixedModel

__all__ = ["PeftMixedModel"]
