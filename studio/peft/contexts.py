"""Small helpers around a model: scales for a while, dtypes, and the base's own tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.errors import BadFile
from studio.peft.configs.config import PeftConfig
from studio.peft.injection import Injection
from studio.peft.kinds import PeftWarning, Unknown, Wrong
from studio.peft.layers import INJECTION
from studio.peft.tensors import Keys, adapts_embeddings, get_state, set_state
from studio.peft.wrapper import PeftModel

__all__ = [
    "base_of",
    "cast_mixed_precision_params",
    "check_if_peft_model",
    "delete_adapter",
    "disable_input_dtype_casting",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
    "rescale_adapter_scale",
    "set_adapter",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "set_requires_grad",
]


def base_of(model: nn.Module) -> nn.Module:
    """Returns the base of a PEFT model, or the model itself."""
    inner = unwrapped(model)
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def unwrapped(model: nn.Module) -> nn.Module:
    """Takes off what ``torch.compile``, FSDP or DDP put around a model."""
    wraps = ("_orig_mod", "_fsdp_wrapped_module", "module")
    inner = next((model._modules[name] for name in wraps if name in model._modules and len(model._modules) == 1), None)
    return model if inner is None else unwrapped(inner)


def _injection(model: nn.Module) -> Injection:
    found = base_of(model).__dict__.get(INJECTION)
    if found is None:
        raise Wrong(f"{type(model).__name__} carries no PEFT adapter")
    return cast(Injection, found)


# -- tensors -----------------------------------------------------------------------------------------------------------


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: str | bool = "auto",
) -> dict[str, Tensor]:
    """Returns an adapter's tensors under PEFT's names.

    Args:
        model: a PEFT model, or a base with adapters (whose keys have no ``base_model.model.`` in front).
        state_dict: tensors of the whole model under PEFT's names, to take the values from instead of the live ones.
        adapter_name: which adapter. unwrap_compiled: accepted; a compiled model is looked into anyway.
        save_embedding_layers: put the base's embeddings beside them; "auto": where the adapter changes them.

    Raises:
        UnknownName: no adapter has that name.
    """
    base = base_of(model)
    wrapped = isinstance(unwrapped(model), PeftModel)
    prefix = "base_model.model." if wrapped else ""
    injection = _injection(model)
    injection.check(adapter_name)
    embeddings = adapts_embeddings(base, adapter_name) if save_embedding_layers == "auto" else save_embedding_layers
    found = get_state(base, adapter_name, prefix=prefix, embeddings=bool(embeddings))
    if state_dict is None:
        return found
    given = {key.replace(f".{adapter_name}.", ".").removesuffix(f".{adapter_name}"): one
             for key, one in state_dict.items()}  # fmt: skip
    return {key: given.get(key, tensor).reshape(tensor.shape) for key, tensor in found.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> Keys:
    """Copies tensors into an adapter.

    Args:
        model: a PEFT model, or a base with adapters. peft_model_state_dict: PEFT's keys to tensors.
        adapter_name: which adapter. ignore_mismatched_sizes: refused, because a tensor would be left as it is.
        low_cpu_mem_usage: accepted for PEFT's sake.

    Returns:
        The adapter's tensors that got nothing, and the keys that fit nothing.

    Raises:
        UnknownName: no adapter has that name. DoesNotFit: a tensor of another shape.
    """
    if ignore_mismatched_sizes:
        raise Wrong("ignore_mismatched_sizes=True would leave tensors out silently; leave them out of the state dict")
    return set_state(base_of(model), peft_model_state_dict, adapter_name)


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the base's own tensors under the base's own names."""
    found = base_of(model).state_dict()
    return {key: one for key, one in found.items() if not {"adapters", "modules_to_save"} & set(key.split("."))}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Copies tensors into the base, under the base's own names.

    Raises:
        Wrong: with ``strict``, a key that is missing or unknown.
    """
    known = get_base_model_state_dict(model)
    missing, unknown = sorted(set(known) - set(state_dict)), sorted(set(state_dict) - set(known))
    if strict and (missing or unknown):
        raise Wrong(f"the state dict lacks {missing[:3]} and has the unknown {unknown[:3]}; pass strict=False to go on")
    given = {key: one for key, one in state_dict.items() if key in known}
    base_of(model).load_state_dict(given, strict=False)
    return Keys(missing, unknown)


# -- adapters ----------------------------------------------------------------------------------------------------------


def set_adapter(model: nn.Module, adapter_name: str | list[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act on a model; they are trained and no other is."""
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    _injection(model).activate(names, inference_mode)


def set_requires_grad(model: nn.Module, adapter_names: str | list[str], requires_grad: bool = True) -> None:
    """Sets whether adapters are trained, whether they act or not."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _injection(model).require(names, requires_grad)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str | None = None) -> list[str] | None:
    """Takes an adapter off, and returns those that act now."""
    injection = _injection(model)
    injection.remove(adapter_name)
    return list(injection.active) or None


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiplies the strength of every adapter while the context lasts.

    Raises:
        Wrong: the multiplier is no number, or the model carries no adapter.
    """
    if not isinstance(multiplier, (int, float)) or isinstance(multiplier, bool):
        raise TypeError(f"Argument multiplier should be of type float, got {type(multiplier)}")
    injection = _injection(model)
    before = {name: {path: injection.scale_of(name, path) for path, _ in injection.layers(name)}
              for name in injection.peft_config}  # fmt: skip
    try:
        _scale(injection, before, float(multiplier))
        yield
    finally:
        _scale(injection, before, 1.0)


def _scale(injection: Injection, scales: Mapping[str, Mapping[str, float]], factor: float) -> None:
    for name, table in scales.items():
        for path, scale in table.items():
            injection.scale_at(name, path, scale * factor)
    injection.sync()


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Does nothing: inputs are never cast here, an adapter's tensors are brought to the dtype of what flows."""
    yield


def check_if_peft_model(model_name_or_path: str | Path) -> bool:
    """Says whether a folder, or a name on the Hub, is an adapter."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (BadFile, Wrong, Unknown, OSError):
        return False
    return True


# -- dtypes ------------------------------------------------------------------------------------------------------------


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
        auto_clear_cache: accepted; there is nothing to clear here.
    """
    base = cast(Any, model)
    quantised = getattr(base, "is_loaded_in_8bit", False) or getattr(base, "is_loaded_in_4bit", False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.float()
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
