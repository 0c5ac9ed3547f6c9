"""The state of a model's adapters, by layer and as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from studio.adapters import trainable
from studio.peft.injection import Injection
from studio.peft.kinds import Wrong
from studio.peft.layers import INJECTION

__all__ = ["TunerLayerStatus", "TunerModelStatus", "get_layer_status", "get_model_status"]

Mixed = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """The state of one adapted layer."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Mixed]
    available_adapters: list[str]
    devices: dict[str, list[str]]


@dataclass
class TunerModelStatus:
    """The state of a model; "irregular" where its layers differ."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Mixed
    active_adapters: list[str] | Mixed
    merged_adapters: list[str] | Mixed
    requires_grad: dict[str, bool | Mixed]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def _base_of(model: nn.Module) -> tuple[nn.Module, str]:
    from studio.peft.wrapper import PeftModel

    if isinstance(model, PeftModel):
        return model.get_base_model(), "model"
    return model, ""


def _injection(model: nn.Module) -> Injection:
    found = model.__dict__.get(INJECTION)
    if found is None:
        raise Wrong("No adapter layers found in the model, please ensure that it's a PEFT model or that you have PEFT "
                    "adapters injected in the model.")  # fmt: skip
    return cast(Injection, found)


def _one(values: Iterable[Any], none: Any) -> Any:
    """The value that all have, or "irregular"."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return none if not found else found[0] if len(found) == 1 else "irregular"


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """Returns the state of every adapted layer.

    Args:
        model: a PEFT model, or a base with adapters.

    Raises:
        Wrong: it carries none.
    """
    base, prefix = _base_of(model)
    injection = _injection(base)
    found = []
    for path in injection.paths():
        here = injection.adapters_at(path)
        names = sorted(here)
        module = type(base.get_submodule(path))
        found.append(
            TunerLayerStatus(
                name=".".join(part for part in (prefix, path) if part),
                module_type=f"{injection.peft_config[names[0]].word.lower()}.{module.__name__}",
                enabled=not injection.disabled_at(path),
                active_adapters=injection.active_at(path),
                merged_adapters=[name for name in injection.merged if name in here],
                requires_grad={name: _one((p.requires_grad for p in here[name].parameters()), False) for name in names},
                available_adapters=names,
                devices={
                    name: sorted({tensor.device.type for tensor in here[name].tensors().values()}) for name in names
                },
            )
        )
    return found


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """Returns the state of the whole model.

    Args:
        model: a PEFT model, or a base with adapters.

    Raises:
        Wrong: it carries none.
    """
    base, prefix = _base_of(model)
    injection, layers = _injection(base), get_layer_status(model)
    counted = trainable(base)
    adapters = list(dict.fromkeys(name for layer in layers for name in layer.available_adapters))
    merged = _one((layer.merged_adapters for layer in layers if layer.available_adapters), [])
    return TunerModelStatus(
        base_model_type=type(base).__name__,
        adapter_model_type=type(cast(Any, model).base_model).__name__ if prefix else "None",
        peft_types={name: config.word for name, config in injection.peft_config.items()},
        trainable_params=counted.trainable,
        total_params=counted.total,
        num_adapter_layers=len(layers),
        enabled=_one((layer.enabled for layer in layers), True),
        active_adapters=_one((layer.active_adapters for layer in layers), []),
        merged_adapters=merged,
        requires_grad={
            name: _one((layer.requires_grad[name] for layer in layers if name in layer.requires_grad), False)
            for name in adapters
        },
        available_adapters=sorted(adapters),
        devices={
            name: sorted({device for layer in layers for device in layer.devices.get(name, [])}) for name in adapters
        },
    )
