"""In which precision a base and its adapters are kept while they are trained."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import nn

from studio.device import choose_device, free_cache
from studio.peft.terms.errors import PeftWarning

__all__ = ["cast_mixed_precision_params", "prepare_model_for_kbit_training"]


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Brings what is frozen to ``dtype`` and what is trained to fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Freezes a base, brings its half-precision parameters to fp32, and switches gradient checkpointing on.

    Args:
        model: the base. use_gradient_checkpointing: whether to. gradient_checkpointing_kwargs: what it is given.
        auto_clear_cache: give back the memory of the device that the casts have left.
    """
    base = cast(Any, model)
    quantised = getattr(base, "is_loaded_in_8bit", False) or getattr(base, "is_loaded_in_4bit", False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.float()
    if auto_clear_cache:
        free_cache(choose_device())
    if not (quantised or hasattr(base, "quantization_method")) or not use_gradient_checkpointing:
        return model
    if callable(getattr(base, "enable_input_require_grads", None)):
        base.enable_input_require_grads()
    accepted = getattr(base, "_supports_gradient_checkpointing", True)
    if not accepted:
        warnings.warn("the model has no gradient checkpointing", PeftWarning, stacklevel=2)
        return model
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs or {})
    return model
