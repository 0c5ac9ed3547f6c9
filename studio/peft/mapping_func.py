"""``peft.mapping_func``."""

from studio.peft.wrapper import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, get_peft_model

__all__ = ["MODEL_TYPE_TO_PEFT_MODEL_MAPPING", "get_peft_model"]
