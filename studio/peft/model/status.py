"""The state of a model's adapters, by layer and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from studio.adapters import trainable
from studio.peft.model.state import state_of
from studio.peft.model.tuner import base_of, tuner_of

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


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """Returns the state of every adapted layer.

    Args:
        model: a PEFT model, or a base with adapters.

    Raises:
        Wrong: it carries none.
    """
    base, prefix = base_of(model), "" if tuner_of(model) is None else "model."
    state = state_of(base)
    found = []
    for path in state.paths():
        here = state.adapters_at(path)
        names = sorted(here)
        layer = type(base.get_submodule(path)).__name__
        found.append(
            TunerLayerStatus(
                name=f"{prefix}{path}".removesuffix("."),
                module_type=f"{state.configs[names[0]].word.lower()}.{layer}",
                enabled=not state.disabled_at(path),
                active_adapters=state.active_at(path),
                merged_adapters=[name for name in state.merged if name in here],
                requires_grad={name: _common((p.requires_grad for p in here[name].parameters()), False)
                               for name in names},
                available_adapters=names,
                devices={name: sorted({one.device.type for one in here[name].tensors().values()}) for name in names},
            )
        )  # fmt: skip
    return found


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """Returns the state of the whole model.

    Args:
        model: a PEFT model, or a base with adapters.

    Raises:
        Wrong: it carries none.
    """
    base, tuner = base_of(model), tuner_of(model)
    layers, counted = get_layer_status(model), trainable(base)
    names = sorted({name for layer in layers for name in layer.available_adapters})
    return TunerModelStatus(
        base_model_type=type(base).__name__,
        adapter_model_type=type(tuner).__name__ if tuner is not None else "None",
        peft_types={name: config.word for name, config in state_of(base).configs.items()},
        trainable_params=counted.trainable,
        total_params=counted.total,
        num_adapter_layers=len(layers),
        enabled=_common((layer.enabled for layer in layers), True),
        active_adapters=_common((layer.active_adapters for layer in layers), []),
        merged_adapters=_common((layer.merged_adapters for layer in layers if layer.available_adapters), []),
        requires_grad={name: _common(_of(name, [layer.requires_grad for layer in layers]), False) for name in names},
        available_adapters=names,
        devices={name: sorted({device for found in _of(name, [layer.devices for layer in layers]) for device in found})
                 for name in names},
    )  # fmt: skip


def _of(name: str, tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    """What the layers that have an adapter say of it."""
    return [table[name] for table in tables if name in table]


def _common(values: Iterable[Any], none: Any) -> Any:
    """The value that all have, or "irregular"."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return none if not found else found[0] if len(found) == 1 else "irregular"
