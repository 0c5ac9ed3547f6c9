"""``get_peft_model``: a new adapter on a base."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from studio.peft.configs.checks import note_name
from studio.peft.configs.config import PeftConfig
from studio.peft.model.layers import BaseTunerLayer
from studio.peft.peft_model import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftMixedModel, PeftModel, model_class
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["MODEL_TYPE_TO_PEFT_MODEL_MAPPING", "get_peft_model"]


def _name_base(model: nn.Module, config: PeftConfig) -> None:
    """Notes in a config which base it is put on, and says so where another one stood there."""
    where = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
    before = config.base_model_name_or_path
    if before is not None and before != where:
        warnings.warn(
            f"The PEFT config's `base_model_name_or_path` was renamed from '{before}' to '{where}'. Please ensure that "
            "the correct base model is loaded when loading this checkpoint.",
            PeftWarning,
            stacklevel=3,
        )
    config.base_model_name_or_path = where


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
    *,
    calibrate: Any = None,
    original: Any = None,
) -> PeftModel:
    """Puts a new adapter on a base and returns both as one model.

    Args:
        model: any module; it is changed in place. peft_config: the adapter's config.
        adapter_name: its name. mixed: allow adapters of other methods beside it.
        autocast_adapter_dtype: keep half-precision adapters in fp32. revision: the base's version, for the config.
        low_cpu_mem_usage: accepted for PEFT's sake.
        calibrate: what a start from data ("eva", "corda") is made from: batches, or a function that is given the model
            and runs it; PEFT has functions of its own for this.
        original: what "loftq" makes up for: the same model before it was quantised.

    Raises:
        Wrong: a field or a method that the studio does not have. NoTargets: a target that fits nothing.
        UnsupportedLayer: a layer that the method cannot change.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> from studio.peft import LoraConfig, get_peft_model
        >>> get_peft_model(net, LoraConfig(r=2, target_modules=["0"])).print_trainable_parameters()
        trainable params: 32 || all params: 104 || trainable%: 30.7692
    """
    if isinstance(model, PeftModel):
        raise Wrong("the model is a PeftModel already; use add_adapter for another adapter")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        warnings.warn(
            "You are trying to modify a model with PEFT for a second time. If you want to reload the model with a "
            "different config, make sure to call `.unload()` before.",
            PeftWarning,
            stacklevel=2,
        )
    _name_base(model, peft_config)
    if revision is not None:
        if peft_config.revision not in (None, revision):
            warnings.warn(
                f"peft config has already set base model revision to {peft_config.revision}, overwriting with "
                f"revision {revision}",
                PeftWarning,
                stacklevel=2,
            )
        peft_config.revision = revision
    note_name(peft_config, adapter_name)
    return (PeftMixedModel if mixed else model_class(peft_config))(
        model,
        peft_config,
        adapter_name,
        autocast_adapter_dtype,
        low_cpu_mem_usage,
        calibrate=calibrate,
        original=original,
    )
