"""PEFT's names of what an adapter has: its tensors, as they are called in the live model, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from studio.adapters import Adapter
from studio.adapters.contract.ranked import RankedConfig
from studio.files.layout import to_file
from studio.peft.model.state import State, owner_of

__all__ = ["NamedTensors", "Table", "attribute_of", "names_of_tensors", "peft_name", "setting_of", "settings"]


class NamedTensors(nn.Module):
    """The tensors of one adapter under one of PEFT's names: ``.weight``, ``.bias``.

    Args:
        tensors: the last word of the name -> a parameter, or a view of one in PEFT's shape ``(...)``.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self._parameters[name] = tensor
            else:
                self._buffers[name] = tensor
        if "weight" in tensors:
            self._parameters.setdefault("bias", None)


def _module(tensors: Mapping[str, Tensor]) -> nn.Module:
    """What has these tensors: a linear layer of the same parameters where they make one, which can be called."""
    weight = tensors.get("weight")
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not tensors.keys() <= {"weight", "bias"}:
        return NamedTensors(tensors)
    made = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(made)
    made.out_features, made.in_features = weight.shape
    made._parameters.update(weight=weight, bias=cast("nn.Parameter | None", tensors.get("bias")))
    return made


class Table(Mapping[str, Any]):
    """Adapter name -> what is read of it at each look; assigning to an entry calls ``write``, where there is one.

    Args:
        read: returns the entries. write: takes a name and its new value.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]], write: Callable[[str, Any], None] | None = None) -> None:
        self._read, self._write = read, write

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("_") else self._read()
        if name not in found:
            raise AttributeError(name)
        return found[name]

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self._write is None:
            raise TypeError("these values are read from the adapters and cannot be set")
        self._write(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self))


def peft_name(adapter: Adapter, tensor: str) -> str:
    """Returns PEFT's name of a tensor in the live model, with ``{}`` where the adapter's name stands."""
    name = adapter.peft.names(adapter.site).get(tensor, tensor)
    head, dot, rest = adapter.peft.respelled.get(name, name).partition(".")
    return f"{head}.{{}}{dot}{rest}"


def attribute_of(adapter: Adapter, name: str) -> Tensor | nn.Module | None:
    """Returns what a PEFT layer has of an adapter under an attribute, or None where the adapter has no such tensor.

    Args:
        adapter: the adapter on the layer. name: the attribute ("lora_A").
    """
    parts: dict[str, Tensor] = {}
    for key, tensor in adapter.tensors().items():
        head, _, rest = peft_name(adapter, key).partition(".{}")
        if head == name:
            parts[rest.lstrip(".")] = _in_pefts_shape(adapter, key, tensor)
    return parts[""] if "" in parts else _module(parts) if parts else None


def _in_pefts_shape(adapter: Adapter, name: str, tensor: Tensor) -> Tensor:
    """A live tensor in the shape that PEFT has it in: itself, or a view of it."""
    shaped = to_file(tensor, adapter.peft.layouts.get(name, "plain"), adapter.site)
    return tensor if shaped.shape == tensor.shape else shaped


def setting_of(adapter: Adapter, name: str) -> Any:
    """Returns a field of an adapter's config under PEFT's name for it, as it holds at the adapter's layer.

    Args:
        adapter: the adapter on the layer. name: PEFT's name of a field that :func:`settings` lists.
    """
    ours = settings(adapter)[name]
    config, path = adapter.config, adapter.site.path
    if isinstance(config, RankedConfig) and ours in ("rank", "alpha"):
        return config.rank_at(path) if ours == "rank" else config.alpha_at(path)
    return getattr(config, ours)


def settings(adapter: Adapter) -> dict[str, str]:
    """Returns PEFT's names of the fields of an adapter's config -> ours."""
    return {theirs: ours for ours, theirs in adapter.peft.settings.fields.items()}


def names_of_tensors(state: State) -> dict[str, str]:
    """Returns the names of the adapters' tensors in a PEFT model as the core has them -> PEFT's.

    Args:
        state: what is on the base.
    """
    found: dict[str, str] = {}
    for core in (core for name in state.configs for core in state.cores(name)):
        name = owner_of(core)
        for path, adapter in state.assembly.adapters(core):
            mount = state.assembly.mounts[path]
            owner = path.rpartition(".")[0] if adapter.site.hosting == "owner" else path
            around = "token_adapter" if core != name else _base_layers(adapter, name)
            for key in adapter.tensors():
                shared = adapter.peft.shared.get(key)  # PEFT has it once, beside the base
                place = ("base_model.model", owner, around) if shared is None else ("base_model",)
                theirs = _dotted(*place, peft_name(adapter, key).format(name) if shared is None else f"{shared}.{name}")
                found[_dotted("base_model.model", mount.place, core, key)] = theirs
    return found


def _base_layers(adapter: Adapter, name: str) -> str:
    """How far inside PEFT's wrappers an adapter of a bare parameter is: one for each that follows on its module."""
    site = adapter.site
    if site.hosting != "owner":
        return ""
    held = cast(Any, site.module._modules["adapters"])._modules
    beside = [one for one in site.module._parameters if one in held and name in held[one]._modules]
    return _dotted(*["base_layer"] * (len(beside) - 1 - beside.index(site.weight_name)))


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)
