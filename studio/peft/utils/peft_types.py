"""``peft.utils.peft_types``."""

from studio.peft.kinds import PeftType, TaskType

__all__ = ["PeftType", "TaskType"]
