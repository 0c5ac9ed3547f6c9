"""The state of a model's adapters, by layer and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from studio.adapters import trainable
from studio.peft.model.state import State, state_of
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
    quantization_backend: str | None = None


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
    quantization_backend: str | None = None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """Returns the state of every adapted layer.

    Args:
        model: a PEFT model, or a base with adapters.

    Raises:
        Wrong: it carries none.
    """
    base, prefix = base_of(model), "" if tuner_of(model) is None else "model."
    state = state_of(base)
    return [_status(state, f"{prefix}{path}".removesuffix("."), *part) for path, part in _parts(state)]


class _Part(NamedTuple):
    """What stands at one place of the model: the adapters on a layer, copies of a module, or rows of an embedding."""

    path: str
    kind: str
    held: Mapping[str, nn.Module]
    active: list[str]
    enabled: bool
    merges: bool = True


def _parts(state: State) -> Iterator[tuple[str, _Part]]:
    """All that adapters have, in the order of the model; bare parameters stand behind the module that keeps them."""
    order = {path: number for number, (path, _) in enumerate(state.model.named_modules())}
    copies: dict[str, dict[str, nn.Module]] = {}
    for name, extras in state.extras.items():
        for path, module in extras.modules.items():
            copies.setdefault(path, {})[name] = module
    paths = dict.fromkeys([*state.paths(), *copies])
    for path in sorted(paths, key=lambda one: (order.get(one, order.get(one.rpartition(".")[0], 0)), one)):
        active, on = state.active_at(path), not state.disabled_at(path)
        layer, rows = state.adapters_at(path), state.adapters_at(path, tokens=True)
        if layer:
            word = state.configs[min(layer)].word.lower()
            bare = any(path in state.extras[name].beside for name in layer)
            kind = "ParamWrapper" if bare else type(next(iter(layer.values())).site.module).__name__
            yield path, _Part(path, f"{word}.{kind}", layer, active, on)
        if rows:
            acting = [name for name in active if name in rows]
            yield f"{path}.token_adapter", _Part(path, "TrainableTokensLayer", rows, acting, on)
        if path in copies:
            here = copies[path]
            acting = [name for name in state.chosen.get(path, state.active) if name in here]
            yield path, _Part(path, "ModulesToSaveWrapper", here, acting, path not in state.copies_off, False)


def _status(
    state: State,
    name: str,
    path: str,
    kind: str,
    held: Mapping[str, nn.Module],
    active: list[str],
    enabled: bool,
    merges: bool,
) -> TunerLayerStatus:
    names = sorted(held)
    tensors = {one: [*held[one].parameters(), *held[one].buffers()] for one in names}
    return TunerLayerStatus(
        name=name,
        module_type=kind,
        enabled=enabled,
        active_adapters=active,
        merged_adapters=[one for one in state.merged if merges and one in held],
        requires_grad={one: _common((p.requires_grad for p in held[one].parameters()), False) for one in names},
        available_adapters=names,
        devices={one: sorted({tensor.device.type for tensor in tensors[one]}) for one in names},
    )


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
        merged_adapters=_merged(layers),
        requires_grad={name: _common(_of(name, [layer.requires_grad for layer in layers]), False) for name in names},
        available_adapters=names,
        devices={name: sorted({device for found in _of(name, [layer.devices for layer in layers]) for device in found})
                 for name in names},
    )  # fmt: skip


def _merged(layers: Sequence[TunerLayerStatus]) -> list[str] | Mixed:
    """The adapters that are folded in wherever they are, or "irregular"; copies of modules never are."""
    mergeable = [layer for layer in layers if layer.module_type != "ModulesToSaveWrapper"]
    merged = {name for layer in mergeable for name in layer.merged_adapters}
    partly = any(merged & {*layer.available_adapters} - {*layer.merged_adapters} for layer in mergeable)
    return "irregular" if partly else sorted(merged)


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
