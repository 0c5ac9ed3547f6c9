"""PEFT's view of an adapted layer: ``BaseTunerLayer`` and its attributes, read from what the core keeps.

The class of an adapted layer is changed once more, to one that is also a ``BaseTunerLayer``; taking the adapter off
undoes both changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters import Adapter
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.hosting.host import hosted_class, is_hosted, mount_of
from studio.adapters.sites.site import Site
from studio.files.layout import to_file
from studio.peft.saved_modules import plain_view

if TYPE_CHECKING:
    from studio.peft.injection import Injection

__all__ = ["IA3Layer", "BaseTunerLayer", "LoHaLayer", "LoKrLayer", "LoraLayer", "dress", "peft_name"]

INJECTION: Final = "_studio_peft"


def peft_name(adapter: Adapter, tensor: str) -> str:
    """Returns PEFT's name of a tensor in the live model, with ``{}`` where the adapter's name stands."""
    foreign = adapter.foreign
    table = {**foreign.peft_tensors, **(foreign.peft_embedding if adapter.site.kind == "embedding" else {})}
    part = table.get(tensor, tensor)
    head, dot, rest = part.partition(".")
    return f"{head}.{{}}{dot}{rest}"


def as_peft(adapter: Adapter, name: str, tensor: Tensor) -> Tensor:
    """Returns a live tensor in the shape that PEFT has it in: itself, or a view of it."""
    layout = adapter.foreign.layouts.get(name, ("plain", "plain"))[0]
    shaped = to_file(tensor, layout, adapter.site)
    return tensor if shaped.shape == tensor.shape else shaped


class Held(nn.Module):
    """The tensors of one adapter under one of PEFT's names: ``.weight``, ``.bias``."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self._parameters[name] = tensor
            else:  # a view of one, in PEFT's shape
                self._buffers[name] = tensor


class Table(Mapping[str, Any]):
    """Adapter name -> what is read of it at each look; read-only."""

    def __init__(self, layer: BaseTunerLayer, read: Callable[[], Mapping[str, Any]]) -> None:
        self._layer, self._look = layer, read

    def _read(self) -> Mapping[str, Any]:
        return self._look() if isinstance(self._layer, BaseTunerLayer) else {}  # it may have been taken off since

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("_") else self._read()
        if name not in found:
            raise AttributeError(name)
        return found[name]

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass
class TokenRows:
    """The rows of single tokens: adapter name -> ``(tokens, dim)``."""

    trainable_tokens_delta: Table


class BaseTunerLayer:
    """A layer that carries adapters, with PEFT's attributes."""

    # -- what is here --------------------------------------------------------------------------------------------------

    @property
    def _injection(self) -> Injection:
        root = mount_of(cast(nn.Module, self)).assembly.root
        return cast("Injection", root.__dict__[INJECTION])

    @property
    def _site(self) -> Site:
        return mount_of(cast(nn.Module, self)).site

    def _adapters(self) -> dict[str, Adapter]:
        """PEFT's adapter name -> the adapter of the core that holds its tensors here."""
        if not is_hosted(cast(nn.Module, self)):
            return {}
        return self._injection.adapters_at(self._site.path)

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:
        """The names under which this layer has trained tensors, by adapter."""
        found = {
            peft_name(adapter, key).partition(".")[0]: None
            for adapter in self._adapters().values()
            for key in adapter.tensors()
            if key in adapter.trained
        }
        return tuple(found)

    @property
    def other_param_names(self) -> tuple[str, ...]:
        """The names under which this layer has settings, by adapter."""
        fields = {theirs for adapter in self._adapters().values() for theirs in adapter.foreign.peft_fields.values()}
        return ("scaling", *sorted(fields))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("__") or not is_hosted(cast(nn.Module, self)):
                raise
            if not self._look(name):
                raise
            return Table(self, lambda: self._look(name))

    def _look(self, name: str) -> dict[str, Any]:
        """Reads one of PEFT's attributes: the tensors of that name, or a field of the config, by adapter."""
        found: dict[str, Any] = {}
        for owner, adapter in self._adapters().items():
            parts: dict[str, Tensor] = {}
            for key, tensor in adapter.tensors().items():
                head, _, rest = peft_name(adapter, key).partition(".{}")
                if head == name:
                    parts[rest.lstrip(".")] = as_peft(adapter, key, tensor)
            if "" in parts:
                found[owner] = parts[""]
            elif parts:
                found[owner] = Held(parts)
        return found or self._setting(name)

    def _setting(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for owner, adapter in self._adapters().items():
            fields = {theirs: ours for ours, theirs in adapter.foreign.peft_fields.items()}
            if name not in fields:
                continue
            ours, config = fields[name], adapter.config
            if isinstance(config, RankedConfig) and ours in ("rank", "alpha"):
                path = adapter.site.path
                value: Any = config.rank_at(path) if ours == "rank" else config.alpha_at(path)
            else:
                value = getattr(config, ours)
            found[owner] = value
        return found

    @property
    def scaling(self) -> Mapping[str, float]:
        """Adapter name -> the factor of its change; read-only: :meth:`set_scale` changes it."""
        return Table(self, self._scaling)

    def _scaling(self) -> dict[str, float]:
        found = {}
        for name, adapter in self._adapters().items():
            config = adapter.config
            usual = config.scale_at(adapter.site.path) if isinstance(config, RankedConfig) else 1.0
            found[name] = usual * self._injection.scale_of(name, self._site.path)
        return found

    @property
    def token_adapter(self) -> TokenRows:
        """The rows of single tokens that adapters have here.

        Raises:
            AttributeError: none has any.
        """
        rows = self._token_rows()
        if not rows:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'token_adapter'")
        return TokenRows(Table(self, self._token_rows))

    def _token_rows(self) -> dict[str, Tensor]:
        found = self._injection.adapters_at(self._site.path, tokens=True) if is_hosted(cast(nn.Module, self)) else {}
        return {name: adapter.tensors()["rows"] for name, adapter in found.items()}

    # -- the base ------------------------------------------------------------------------------------------------------

    def get_base_layer(self) -> nn.Module:
        """Returns the layer as the base has it; putting it in the place of every layer takes the adapters off."""
        self._injection.lend()
        return plain_view(cast(nn.Module, self))

    @property
    def base_layer(self) -> nn.Module:
        """The layer as the base has it."""
        return self.get_base_layer()

    @property
    def in_features(self) -> int:
        """Inputs of the layer."""
        own = self.__dict__.get("in_features")
        return int(own if own is not None else self._site.inner_shape[0])

    @property
    def out_features(self) -> int:
        """Outputs of the layer."""
        own = self.__dict__.get("out_features")
        return int(own if own is not None else self._site.rows)

    # -- which adapters act --------------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act here."""
        return self._injection.active_at(self._site.path)

    @property
    def active_adapter(self) -> list[str]:
        """The same."""
        return self.active_adapters

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off here."""
        return self._injection.disabled_at(self._site.path)

    @property
    def merged(self) -> bool:
        """Whether adapters are folded into the weight."""
        return bool(self.merged_adapters)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are folded into the weight."""
        return [name for name in self._injection.merged if name in self._adapters()]

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self._adapters())

    _get_available_adapters = _all_available_adapter_names

    def enable_adapters(self, enabled: bool) -> None:
        """Switches all adapters here on or off."""
        self._injection.enable_at(self._site.path, enabled)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Sets the adapters that act here and are trained."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._injection.activate_at(self._site.path, names, inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Sets whether adapters here are trained."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for parameter in self._adapters()[name].parameters():
                parameter.requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter off, here and everywhere in the model."""
        if adapter_name in self._injection.peft_config:
            self._injection.remove(adapter_name)

    # -- strengths and merging -----------------------------------------------------------------------------------------

    def set_scale(self, adapter: str, scale: float) -> None:
        """Sets the factor beside the adapter's own scale."""
        if adapter in self._adapters():
            self._injection.scale_at(adapter, self._site.path, float(scale))

    def scale_layer(self, scale: float) -> None:
        """Multiplies the factor of the active adapters."""
        for name in self.active_adapters:
            if name in self._adapters():
                now = self._injection.scale_of(name, self._site.path)
                self._injection.scale_at(name, self._site.path, now * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divides the factor of the active adapters, or sets it back."""
        for name in self.active_adapters:
            if name in self._adapters():
                now = self._injection.scale_of(name, self._site.path)
                self._injection.scale_at(name, self._site.path, 1.0 if scale is None else now / scale)

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Folds adapters into the weights, of this layer and of all others: a model is merged as a whole."""
        self._injection.merge(adapter_names, safe=safe_merge)

    def unmerge(self) -> None:
        """Gives the base its own weights back, in all layers."""
        self._injection.unmerge()

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Returns the change of the weight at strength 1."""
        found = self._adapters()[adapter]
        site = self._site
        delta = found.delta(site.weight, site.bias).weight
        if delta is None:
            return torch.zeros_like(site.weight)
        return delta * self._injection.scale_of(adapter, site.path)


class LoraLayer(BaseTunerLayer):
    """A layer with LoRA, DoRA or AdaLoRA on it."""


class LoHaLayer(BaseTunerLayer):
    """A layer with LoHa on it."""


class LoKrLayer(BaseTunerLayer):
    """A layer with LoKr on it."""


class IA3Layer(BaseTunerLayer):
    """A layer with IA³ on it."""


_KINDS: Final[dict[str, type[BaseTunerLayer]]] = {
    "LORA": LoraLayer,
    "ADALORA": LoraLayer,
    "LOHA": LoHaLayer,
    "LOKR": LoKrLayer,
    "IA3": IA3Layer,
}

_CLASSES: Final[dict[tuple[type[nn.Module], str, tuple[type[BaseTunerLayer], ...]], type[nn.Module]]] = {}


def _rebuild(base: type[nn.Module], hosting: str, kinds: tuple[type[BaseTunerLayer], ...]) -> nn.Module:
    kind = _class_for(base, hosting, kinds)
    return kind.__new__(kind)


def _class_for(base: type[nn.Module], hosting: str, kinds: tuple[type[BaseTunerLayer], ...]) -> type[nn.Module]:
    key = (base, hosting, kinds)
    if key not in _CLASSES:

        def reduce_ex(self: nn.Module, protocol: int) -> Any:
            reduced: Any = base.__reduce_ex__(self, protocol)
            return (_rebuild, key, *reduced[2:])

        body = {
            "__reduce_ex__": reduce_ex,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "hosts": base,
        }
        _CLASSES[key] = cast("type[nn.Module]", type(base.__name__, (*kinds, hosted_class(base, hosting)), body))
    return _CLASSES[key]


def dress(site: Site, words: Sequence[str]) -> None:
    """Makes a hosted layer a :class:`BaseTunerLayer` too, of the kinds that PEFT's words name."""
    module = site.module
    if site.hosting in ("owner", "hooks") or not is_hosted(module):
        return  # no layer that is called with one input
    kinds = tuple(sorted({_KINDS.get(word, BaseTunerLayer) for word in words}, key=lambda kind: kind.__name__))
    if len(kinds) > 1:
        kinds = tuple(kind for kind in kinds if kind is not BaseTunerLayer)
    module.__class__ = _class_for(vars(type(module))["hosts"], site.hosting, kinds or (BaseTunerLayer,))
