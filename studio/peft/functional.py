"""``peft.functional``."""

from studio.peft.contexts import (
    delete_adapter,
    get_peft_model_state_dict,
    set_adapter,
    set_peft_model_state_dict,
    set_requires_grad,
)
from studio.peft.tuner import inject_adapter_in_model

__all__ = [
    "delete_adapter",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "set_adapter",
    "set_peft_model_state_dict",
    "set_requires_grad",
]
