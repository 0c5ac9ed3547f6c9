"""PEFT's view of an adapted layer: ``BaseTunerLayer`` and its attributes, read from what the core keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, cast

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, Site
from studio.adapters.hosting.host import is_hosted, mount_of
from studio.peft.model.activity import enable_adapters_at, set_adapter_at, set_requires_grad_at, set_scale_at
from studio.peft.model.converting import can_become_lora
from studio.peft.model.copies import plain_view
from studio.peft.model.dressing import view_of
from studio.peft.model.merging import merge_adapter, unmerge_adapter
from studio.peft.model.names import Table, attribute_of, peft_name, setting_of, settings
from studio.peft.model.removing import delete_adapter, lend
from studio.peft.model.rows import TokenAdapter
from studio.peft.model.starts import residual, taken_by
from studio.peft.model.state import KEY, State, by_state
from studio.peft.terms.errors import Wrong

__all__ = ["BaseTunerLayer", "IA3Layer", "LoHaLayer", "LoKrLayer", "LoraLayer"]


P = ParamSpec("P")


def by_layer(verb: Callable[Concatenate[State, str, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Makes a verb on one layer of a state a method of the layer."""

    @functools.wraps(verb)
    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        verb(self._state, self._site.path, *args, **kwargs)

    return method


@view_of("")
class BaseTunerLayer:
    """A layer that carries adapters, with PEFT's attributes."""

    # -- what is here --------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return cast(State, self.__dict__[KEY])

    @property
    def _site(self) -> Site:
        return mount_of(cast(nn.Module, self)).site

    def _adapters(self, *, tokens: bool = False) -> dict[str, Adapter]:
        """PEFT's adapter name -> the adapter of the core that holds its tensors here; none once all are taken off."""
        if not is_hosted(cast(nn.Module, self)):
            return {}
        return self._state.adapters_at(self._site.path, tokens=tokens)

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:
        """The names under which this layer has trained tensors, by adapter."""
        found = [(adapter, key) for adapter in self._adapters().values() for key in adapter.tensors()]
        return tuple(dict.fromkeys(peft_name(one, key).partition(".")[0] for one, key in found if key in one.trained))

    @property
    def frozen_peft_weight_names(self) -> dict[str, set[str]]:
        """The names under which this layer has factors that are not trained (MiCA's), by adapter."""
        here = {name: {peft_name(one, key).partition(".")[0] for key in one.frozen if key in one.tensors()}
                for name, one in self._adapters().items()}  # fmt: skip
        return {name: names for name, names in here.items() if names}

    @property
    def other_param_names(self) -> tuple[str, ...]:
        """The names under which this layer has settings, by adapter."""
        return ("scaling", *sorted({name for adapter in self._adapters().values() for name in settings(adapter)}))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("__") or not self._by_adapter(name):
                raise
            return Table(partial(BaseTunerLayer._by_adapter, self, name), partial(BaseTunerLayer._fill, self, name))

    def _by_adapter(self, name: str) -> dict[str, Any]:
        """One of PEFT's attributes, by adapter: the tensors of that name, or a field of the config."""
        here = self._adapters()
        tensors = {owner: attribute_of(adapter, name) for owner, adapter in here.items()}
        if any(one is not None for one in tensors.values()):
            return {owner: one for owner, one in tensors.items() if one is not None}
        if any(name in settings(adapter) for adapter in here.values()):
            return {owner: setting_of(adapter, name) for owner, adapter in here.items() if name in settings(adapter)}
        return {owner: one for owner, one in self._state.shared(name).items() if owner in here}

    @torch.no_grad()
    def _fill(self, name: str, owner: str, value: Any) -> None:
        """Copies numbers into the tensor that an adapter has here under one of PEFT's attributes."""
        tensor = self._by_adapter(name).get(owner)
        if not isinstance(tensor, Tensor) or not isinstance(value, Tensor) or tensor.shape != value.shape:
            raise Wrong(
                f"{name}[{owner!r}] takes a tensor of the shape of the one that is there, and nothing else; what is a "
                "module has its numbers in .weight"
            )
        tensor.copy_(value)

    @property
    def token_adapter(self) -> TokenAdapter:
        """The rows of single tokens that adapters have here.

        Raises:
            AttributeError: none has any.
        """
        if not self._adapters(tokens=True):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'token_adapter'")
        return TokenAdapter(self._state, self._site.path)

    # -- the base ------------------------------------------------------------------------------------------------------

    def get_base_layer(self) -> nn.Module:
        """Returns the layer as the base has it; putting it in the place of every layer takes the adapters off."""
        lend(self._state)
        return plain_view(cast(nn.Module, self))

    @property
    def base_layer(self) -> nn.Module:
        """The layer as the base has it."""
        return self.get_base_layer()

    @property
    def in_features(self) -> int:
        """Inputs of the layer."""
        own = self.__dict__.get("in_features")
        return int(self._site.inner_shape[0] if own is None else own)

    @property
    def out_features(self) -> int:
        """Outputs of the layer."""
        own = self.__dict__.get("out_features")
        return int(self._site.rows if own is None else own)

    # -- which adapters act --------------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act here."""
        return self._state.active_at(self._site.path)

    active_adapter = active_adapters

    @property
    def _active_adapter(self) -> list[str]:
        return self.active_adapters

    @_active_adapter.setter
    def _active_adapter(self, names: str | Sequence[str]) -> None:
        self.set_adapter(names)

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off here."""
        return self._state.disabled_at(self._site.path)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are folded into the weight."""
        here = {*self._adapters(), *self._adapters(tokens=True)}
        return [name for name in self._state.merged if name in here]

    @property
    def merged(self) -> bool:
        """Whether adapters are folded into the weight."""
        return bool(self.merged_adapters)

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self._adapters())

    _get_available_adapters = _all_available_adapter_names

    enable_adapters = by_layer(enable_adapters_at)
    set_adapter = by_layer(set_adapter_at)
    set_requires_grad = by_layer(set_requires_grad_at)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter off, here and everywhere in the model."""
        if adapter_name in self._state.configs:
            delete_adapter(self._state, adapter_name)

    # -- strengths and merging -----------------------------------------------------------------------------------------

    @property
    def scaling(self) -> Table:
        """Adapter name -> the factor of its change; assigning to one acts at once."""
        return Table(partial(BaseTunerLayer._scaling, self), partial(BaseTunerLayer._set_scaling, self))

    def _scaling(self) -> dict[str, float]:
        path = self._site.path
        return {name: self._state.own_scale(name, path) * self._state.scale_of(name, path) for name in self._adapters()}

    def _set_scaling(self, name: str, value: float) -> None:
        own, path = self._state.own_scale(name, self._site.path), self._site.path
        if not own:
            raise Wrong(f"scaling[{name!r}] = {value}: the adapter's own scale at {path} is 0, which no factor changes")
        self.set_scale(name, value / own)

    set_scale = by_layer(set_scale_at)

    def scale_layer(self, scale: float) -> None:
        """Multiplies the factor of the active adapters."""
        for name in self.active_adapters:
            self.set_scale(name, self._state.scale_of(name, self._site.path) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divides the factor of the active adapters, or sets it back."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self._state.scale_of(name, self._site.path) / scale)

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Folds adapters into the weights, of this layer and of all others: a model is merged as a whole."""
        merge_adapter(self._state, adapter_names, safe_merge)

    unmerge = by_state(unmerge_adapter)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Says whether a LoRA can stand for an adapter here; of an unknown name all adapters are meant."""
        here = self._adapters()
        meant = {adapter_name: here[adapter_name]} if adapter_name in here else here
        return all(map(can_become_lora, meant.values()))

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Returns the change of the weight as it acts, ``(rows, cols)``, or ``(rows, cols, height, width)``."""
        site = self._site
        delta = self._adapters()[adapter].delta(site.weight, site.bias).weight
        if delta is None:
            return torch.zeros_like(site.weight)
        return delta * self._state.scale_of(adapter, site.path)


@view_of("LORA", "ADALORA")
class LoraLayer(BaseTunerLayer):
    """A layer with LoRA, DoRA or AdaLoRA on it."""

    @property
    def base_layer(self) -> nn.Module:
        """The layer as the base has it, without what adapters that start out of its weight (PiSSA) stand for.

        That is PEFT's, which takes it off the weight; here ``weight`` is computed at each look and is to be read.
        """
        view = self.get_base_layer()
        weight = None if self.merged else residual(self._adapters(), self._site.weight)
        if weight is not None:
            own = {**view._parameters, self._site.weight_name: nn.Parameter(weight, requires_grad=False)}
            object.__setattr__(view, "__dict__", {**view.__dict__, "_parameters": own})
        return view

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Returns the change of the weight as PEFT has it, ``(rows, cols)``: of its pair, without its start's."""
        found, own = super().get_delta_weight(adapter), self._adapters()[adapter]
        if "down0" not in own.tensors():
            return found
        return found + taken_by(own).to(found) * self._state.scale_of(adapter, self._site.path)


@view_of("LOHA")
class LoHaLayer(BaseTunerLayer):
    """A layer with LoHa on it."""


@view_of("LOKR")
class LoKrLayer(BaseTunerLayer):
    """A layer with LoKr on it."""


@view_of("IA3")
class IA3Layer(BaseTunerLayer):
    """A layer with IA³ on it."""

    @property
    def is_feedforward(self) -> bool:
        """Whether the inputs are scaled here, and not the outputs."""
        return any("gain_in" in adapter.tensors() for adapter in self._adapters().values())
