"""Which adapters act, where, how strongly, and which are trained: on the whole model and on single layers, at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from studio.adapters import Strength
from studio.peft.model.merging import fold_again, take_out, unmerge_adapter
from studio.peft.model.rows import rows_on
from studio.peft.model.stand_ins import swap
from studio.peft.model.state import State, as_names, owner_of
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = [
    "check_together",
    "disable_adapter_layers",
    "enable_adapter_layers",
    "enable_adapters_at",
    "let_act",
    "rescaled",
    "set_adapter",
    "set_adapter_at",
    "set_requires_grad",
    "set_requires_grad_at",
    "set_scale_at",
    "switched_off",
    "train_active",
]


# -- the whole model ---------------------------------------------------------------------------------------------------


def set_adapter(state: State, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act; they are trained, unless ``inference_mode``, and no other is.

    Raises:
        Unknown: no adapter has that name. Wrong: two of them stand in for the same thing.
    """
    names = as_names(adapter_name)
    with refusals():
        state.check(*names)
        check_together(state, names)
        if state.merged:
            warnings.warn(
                "Adapter cannot be set when the model is merged. Unmerging the model first.", PeftWarning, stacklevel=4
            )
            unmerge_adapter(state)
        let_act(state, names)
        for name in state.configs:
            _train(state, name, name in names and not inference_mode)


def let_act(state: State, names: Sequence[str]) -> None:
    """Makes these adapters act, on all their layers, and no other; layers that are switched off stay so."""
    state.assembly.levels.muted.clear()
    state.chosen.clear()
    state.assembly.set({core: Strength() for name in names for core in state.cores(name)})
    swap(state)


def check_together(state: State, names: Sequence[str]) -> None:
    """Checks that no two adapters stand in for the same thing: a module, a parameter, a row.

    Raises:
        Wrong: two of them do.
    """
    taken: dict[str, str] = {}
    for name in names:
        extras, layers = state.extras[name], rows_on(state, name)
        rows = [f"row {token} of {path}" for path in layers for token in cast(Any, layers[path].config).tokens]
        holders = {
            **dict.fromkeys(extras.modules, "ModulesToSaveWrapper"),
            **dict.fromkeys(extras.parameters, "the base's parameters"),
            **dict.fromkeys(rows, "TrainableTokensWrapper"),
        }
        for path, holder in holders.items():
            if path in taken:
                raise Wrong(
                    f"Only one adapter can be set at a time for {holder}: {taken[path]!r} and {name!r} both have {path}"
                )
            taken[path] = name


def enable_adapter_layers(state: State) -> None:
    """Switches all adapters on; those that act are trained."""
    _silence(state, set(), set())
    for name in state.configs:
        _train(state, name, name in state.active)


def disable_adapter_layers(state: State) -> None:
    """Switches all adapters off; none is trained meanwhile."""
    _silence(state, set(state.paths()), {path for extras in state.extras.values() for path in extras.modules})
    for name in state.configs:
        _train(state, name, False)


@contextmanager
def switched_off(state: State) -> Iterator[None]:
    """Switches all adapters off while the context lasts; what was before comes back, after an error too."""
    trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    silent, off = set(state.assembly.levels.silent), set(state.copies_off)
    disable_adapter_layers(state)
    try:
        yield
    finally:
        _silence(state, silent, off)
        _require_grad(trained, True)


def _silence(state: State, paths: set[str], copies: set[str]) -> None:
    """Switches exactly these layers off, and the copies of exactly these modules."""
    levels, state.copies_off = state.assembly.levels, copies
    if paths:
        take_out(state)
    levels.silent = paths
    levels.touch()
    swap(state)
    fold_again(state)


@contextmanager
def rescaled(state: State, multiplier: float) -> Iterator[None]:
    """Multiplies the factor of every adapter at every layer while the context lasts."""
    levels = state.assembly.levels
    before = levels.factors
    levels.factors = {core: {path: before.get(core, {}).get(path, 1.0) * multiplier for path in record.paths}
                      for core, record in state.assembly.records.items()}  # fmt: skip
    levels.touch()
    try:
        yield
    finally:
        levels.factors = before
        levels.touch()


# -- what is trained ---------------------------------------------------------------------------------------------------


def set_requires_grad(state: State, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
    """Sets whether adapters are trained, whether they act or not.

    Raises:
        Unknown: no adapter has that name.
    """
    names = as_names(adapter_names)
    with refusals():
        state.check(*names)
    for name in names:
        _train(state, name, requires_grad)


def train_active(state: State) -> None:
    """Trains the adapters that act, unless their configs are for inference, and no other."""
    for name, config in state.configs.items():
        _train(state, name, name in state.active and not config.inference_mode)


def _train(state: State, name: str, wanted: bool) -> None:
    extras = state.extras[name]
    modules = [*(adapter for _, adapter in state.layers(name)), *extras.modules.values()]
    _require_grad((one for module in modules for one in module.parameters()), wanted)
    _require_grad(extras.parameters.values(), wanted)


def _require_grad(parameters: Iterable[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        if parameter.is_floating_point():
            parameter.requires_grad_(wanted)


# -- one layer: what PEFT's users call in a loop over all --------------------------------------------------------------


def set_adapter_at(state: State, path: str, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act on one layer; they are trained there, unless ``inference_mode``, and no other is.

    Raises:
        Unknown: no adapter has that name.
    """
    names = as_names(adapter_names)
    with refusals():
        state.check(*names)
    if state.merged:
        unmerge_adapter(state)
    for name, adapter in state.adapters_at(path).items():
        _require_grad(adapter.parameters(), name in names and not inference_mode)
    levels, records = state.assembly.levels, state.assembly.records
    acting = dict(levels.strengths)
    for core in state.assembly.mounts[path].adapters.names():
        muted = levels.muted.pop(core, set())
        if owner_of(core) in names:
            if core not in acting:  # so far it acts nowhere
                acting[core], muted = Strength(), set(records[core].paths)
            muted.discard(path)
        elif core in acting:
            muted.add(path)
            if len(muted) == len(records[core].paths):
                del acting[core]
        if muted and core in acting:
            levels.muted[core] = muted
    first = [core for name in names for core in acting if owner_of(core) == name]
    levels.strengths = {core: acting[core] for core in dict.fromkeys([*first, *acting])}
    levels.touch_at(path)
    swap(state)


def set_requires_grad_at(
    state: State, path: str, adapter_names: str | Sequence[str], requires_grad: bool = True
) -> None:
    """Sets whether adapters are trained on one layer."""
    here = state.adapters_at(path)
    for name in as_names(adapter_names):
        _require_grad(here[name].parameters(), requires_grad)


def enable_adapters_at(state: State, path: str, enabled: bool) -> None:
    """Switches the adapters of one layer on or off."""
    levels = state.assembly.levels
    if enabled:
        levels.silent.discard(path)
    else:
        take_out(state)
        levels.silent.add(path)
    levels.touch_at(path)
    swap(state)
    fold_again(state)


def set_scale_at(state: State, path: str, adapter: str, scale: float) -> None:
    """Sets the factor beside an adapter's own scale at one layer; it is kept while the adapter is off."""
    levels = state.assembly.levels
    for core in state.cores(adapter) if adapter in state.adapters_at(path) else ():
        strength = levels.strengths.get(core, Strength()).at("", path)
        levels.factors.setdefault(core, {})[path] = float(scale) / (strength or 1.0)
    levels.touch_at(path)
