"""``get_peft_model``: a new adapter on a base."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

from torch import nn

from studio.peft.configs.checks import note_name
from studio.peft.configs.config import PeftConfig
from studio.peft.files.tensors import PREFIX
from studio.peft.model.layers import BaseTunerLayer
from studio.peft.model.removing import delete_adapter
from studio.peft.model.state import KEY
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


def _without_wrapper(config: Any) -> PeftConfig:
    """A config for a model that is a PeftModel already, with the names of the layers in its base."""
    made = copy.copy(config)
    targets = getattr(config, "target_modules", None)
    if targets is not None and not isinstance(targets, str):
        made.target_modules = {name.removeprefix(PREFIX) for name in targets}
    elif targets is not None:
        made.target_modules = targets.removeprefix(PREFIX)
    return cast(PeftConfig, made)


def _make_room(model: nn.Module, name: str) -> None:
    """Takes off an adapter of the new one's name that has not learned anything: a cell that is run twice.

    Raises:
        Wrong: it has learned something, which would be lost.
    """
    state = model.__dict__.get(KEY)
    if state is None or name not in state.configs:
        return
    parts = [adapter for _, adapter in state.layers(name)]
    extras = state.extras[name]
    changed = state.merged or extras.modules or extras.parameters or state.configs[name].is_prompt_learning
    if changed or not all(one.still(one.site.weight, one.site.bias) for one in parts):
        raise Wrong(
            f"the model has an adapter {name!r} already, and what it has learned would be lost: add_adapter puts "
            "another one beside it, unload() takes all of them off first"
        )
    delete_adapter(state, name)


def _name_revision(config: PeftConfig, revision: str | None) -> None:
    """Notes in a config which version of its base it is put on, and says so where another one stood there."""
    if revision is not None and config.revision not in (None, revision):
        warnings.warn(
            f"peft config has already set base model revision to {config.revision}, overwriting with revision "
            f"{revision}",
            PeftWarning,
            stacklevel=3,
        )
    config.revision = config.revision if revision is None else revision


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
        low_cpu_mem_usage: leave the adapter on the meta device until a file is read into it.
        calibrate: what a start from data ("eva", "corda") is made from: batches, or a function that is given the model
            and runs it; PEFT has functions of its own for this.
        original: what "loftq" makes up for: the same model before it was quantised.

    Raises:
        Wrong: a field or a method that the studio does not have, or an adapter of that name that has learned something
            (one that has not is taken off, with a warning). NoTargets: a target that fits nothing.
        UnsupportedLayer: a layer that the method cannot change.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> from studio.peft import LoraConfig, get_peft_model
        >>> get_peft_model(net, LoraConfig(r=2, target_modules=["0"])).print_trainable_parameters()
        trainable params: 32 || all params: 104 || trainable%: 30.7692
    """
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        warnings.warn(
            "You are trying to modify a model with PEFT for a second time. If you want to reload the model with a "
            "different config, make sure to call `.unload()` before.",
            PeftWarning,
            stacklevel=2,
        )
    if isinstance(model, PeftModel):
        peft_config = _without_wrapper(peft_config)
        model = model.get_base_model()
    _make_room(model, adapter_name)
    _name_base(model, peft_config)
    _name_revision(peft_config, revision)
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
