"""Which adapters act, where, how strongly, and which are trained: on the whole model and on single layers, at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from studio.adapters import Strength
from studio.peft.model.merging import fold_again, take_out, unmerge
from studio.peft.model.stand_ins import swap
from studio.peft.model.state import State, owner_of
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = [
    "activate",
    "activate_at",
    "check_together",
    "enable",
    "enable_at",
    "let_act",
    "require",
    "require_at",
    "rescaled",
    "scale_at",
    "switched_off",
    "train_active",
]


# -- the whole model ---------------------------------------------------------------------------------------------------


def activate(state: State, names: Sequence[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act; they are trained and no other is.

    Args:
        state: what is on the model. names: the adapters. inference_mode: train none of them.

    Raises:
        Unknown: no adapter has that name. Wrong: two of them stand in for the same thing.
    """
    with refusals():
        state.check(*names)
        check_together(state, names)
        if state.merged:
            warnings.warn(
                "Adapter cannot be set when the model is merged. Unmerging the model first.", PeftWarning, stacklevel=4
            )
            unmerge(state)
        let_act(state, names)
        for name in state.configs:
            _train(state, name, name in names and not inference_mode)


def let_act(state: State, names: Sequence[str]) -> None:
    """Makes these adapters act, on all their layers, and no other; layers that are switched off stay so.

    Args:
        state: what is on the model. names: the adapters.
    """
    levels = state.assembly.levels
    levels.muted.clear()
    state.assembly.set({core: Strength() for name in names for core in state.cores(name)})
    swap(state)


def check_together(state: State, names: Sequence[str]) -> None:
    """Checks that no two adapters stand in for the same thing: a module, a parameter, a row.

    Args:
        state: what is on the model. names: the adapters that shall act together.

    Raises:
        Wrong: two of them do.
    """
    taken: dict[str, str] = {}
    for name in names:
        extras = state.extras[name]
        rows = [f"row {token} of {path}" for path, adapter in state.token_layers(name).items()
                for token in cast(Any, adapter.config).tokens]  # fmt: skip
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


def enable(state: State, enabled: bool) -> None:
    """Switches all adapters on or off; while they are off, none is trained.

    Args:
        state: what is on the model. enabled: on or off.
    """
    _silence(state, set() if enabled else set(state.paths()))
    for name in state.configs:
        _train(state, name, enabled and name in state.active)


@contextmanager
def switched_off(state: State) -> Iterator[None]:
    """Switches all adapters off while the context lasts; what was before comes back, after an error too.

    Args:
        state: what is on the model.
    """
    trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    silent = set(state.assembly.levels.silent)
    enable(state, False)
    try:
        yield
    finally:
        _silence(state, silent)
        for parameter in trained:
            parameter.requires_grad_(True)


def _silence(state: State, paths: set[str]) -> None:
    """Switches exactly these layers off."""
    levels = state.assembly.levels
    if paths:
        take_out(state)
    levels.silent = paths
    levels.touch()
    swap(state)
    fold_again(state)


@contextmanager
def rescaled(state: State, multiplier: float) -> Iterator[None]:
    """Multiplies the factor of every adapter at every layer while the context lasts.

    Args:
        state: what is on the model. multiplier: any number.
    """
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


def require(state: State, names: Sequence[str], wanted: bool) -> None:
    """Sets whether adapters are trained, whether they act or not.

    Args:
        state: what is on the model. names: the adapters. wanted: trained or frozen.

    Raises:
        Unknown: no adapter has that name.
    """
    with refusals():
        state.check(*names)
    for name in names:
        _train(state, name, wanted)


def train_active(state: State) -> None:
    """Trains the adapters that act, unless their configs are for inference, and no other.

    Args:
        state: what is on the model.
    """
    for name, config in state.configs.items():
        _train(state, name, name in state.active and not config.inference_mode)


def _train(state: State, name: str, wanted: bool) -> None:
    extras = state.extras[name]
    copies = [one for module in extras.modules.values() for one in module.parameters() if one.is_floating_point()]
    own = [one for _, adapter in state.layers(name) for one in adapter.parameters()]
    _require_grad([*own, *copies, *extras.parameters.values()], wanted)


def _require_grad(parameters: Sequence[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


# -- one layer: what PEFT's users call in a loop over all --------------------------------------------------------------


def activate_at(state: State, path: str, names: Sequence[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act on one layer and are trained there.

    Args:
        state: what is on the model. path: the layer. names: the adapters. inference_mode: train none of them.

    Raises:
        Unknown: no adapter has that name.
    """
    with refusals():
        state.check(*names)
    if state.merged:
        unmerge(state)
    for name, adapter in state.adapters_at(path).items():
        _require_grad(list(adapter.parameters()), name in names and not inference_mode)
    assembly = state.assembly
    levels, records = assembly.levels, assembly.records
    here = assembly.mounts[path].adapters.names()
    acting = dict(levels.strengths)
    for core in here:
        muted = levels.muted.setdefault(core, set())
        if owner_of(core) in names:
            if core not in acting:  # so far it acts nowhere
                muted.update(records[core].paths)
                acting[core] = Strength()
            muted.discard(path)
        elif core in acting:
            muted.add(path)
            if len(muted) == len(records[core].paths):
                del acting[core]
        if not muted or core not in acting:
            del levels.muted[core]
    first = [core for name in names for core in acting if owner_of(core) == name]
    levels.strengths = {core: acting[core] for core in dict.fromkeys([*first, *acting])}
    levels.touch_at(path)
    swap(state)


def require_at(state: State, path: str, names: Sequence[str], wanted: bool) -> None:
    """Sets whether adapters are trained on one layer.

    Args:
        state: what is on the model. path: the layer. names: the adapters. wanted: trained or frozen.
    """
    here = state.adapters_at(path)
    _require_grad([one for name in names for one in here[name].parameters()], wanted)


def enable_at(state: State, path: str, enabled: bool) -> None:
    """Switches the adapters of one layer on or off.

    Args:
        state: what is on the model. path: the layer. enabled: on or off.
    """
    levels = state.assembly.levels
    if not enabled:
        take_out(state)
        levels.silent.add(path)
    else:
        levels.silent.discard(path)
    levels.touch_at(path)
    swap(state)
    fold_again(state)


def scale_at(state: State, name: str, path: str, scale: float) -> None:
    """Sets the factor beside an adapter's own scale at one layer; it is kept while the adapter is off.

    Args:
        state: what is on the model. name: the adapter. path: the layer. scale: any number.
    """
    levels = state.assembly.levels
    for core in state.cores(name):
        strength = levels.strengths.get(core, Strength()).at("", path)
        levels.factors.setdefault(core, {})[path] = scale / (strength or 1.0)
    levels.touch_at(path)
