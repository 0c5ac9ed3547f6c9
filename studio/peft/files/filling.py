"""An adapter's tensors into a model: into a new adapter, or into one that is there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, AdapterConfig, install
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.contract.starts import padded
from studio.adapters.methods.lora import fold_start
from studio.errors import DoesNotFit, PartialLoad
from studio.files.names import Names
from studio.files.reading import Reading
from studio.peft.configs.checks import takes_weights
from studio.peft.configs.translate import method_of
from studio.peft.files.plan import Keys, Plan, plan_extras
from studio.peft.files.sorting import read_parts, sorted_parts
from studio.peft.files.tensors import PREFIX
from studio.peft.model.adding import check_new, put
from studio.peft.model.removing import delete_adapter
from studio.peft.model.starts import start_of_file
from studio.peft.model.state import State, state_of
from studio.peft.terms.errors import Wrong, refusals

__all__ = ["Keys", "fill_state", "install_state", "read_into", "set_state"]


# -- a new adapter -----------------------------------------------------------------------------------------------------


def install_state(
    state: State, name: str, config: Any, tensors: Mapping[str, Tensor], *, trainable: bool, allow_partial: bool = False
) -> Keys:
    """Adds an adapter with given tensors; all of them find a place, or nothing is changed. It acts if no other does.

    Args:
        state: what is on the model. name: the adapter's name. config: its config.
        tensors: PEFT's keys to tensors ``(...)``. trainable: whether it is trained.
        allow_partial: leave out what does not fit instead of refusing.

    Returns:
        The tensors that got nothing, and the keys that fit nothing.

    Raises:
        PartialLoad: a tensor that fits nothing, or one that is missing. DoesNotFit: no key fits the model.
        Wrong: a taken name.
    """
    model = state.model
    config.inference_mode = not trainable
    with refusals():
        parts = sorted_parts(model, config, tensors, name)
        check_new(state, name, config)
        reading = read_parts(model, config, parts.layers)
        _check_read(reading.ignored, len(tensors), allow_partial)
        if not reading.layers:
            raise DoesNotFit("none of the keys fits the model")
        ours, layers = start_of_file(model, config, reading.config, reading.placed(Names(model)))
        put(state, name, config, partial(install, model, ours, layers, name=name, trainable=trainable))
        state.extras[name].preprocessed = getattr(ours, "init", "") == "corda"
        plan = Plan(unexpected=[key.removeprefix(PREFIX) for key in reading.ignored])
        try:
            plan_extras(plan, state, name, parts)
            if not allow_partial:
                plan.check()
        except BaseException:
            delete_adapter(state, name)
            raise
        return plan.carry_out(state, name)


def _check_read(ignored: Mapping[str, str], count: int, allow_partial: bool) -> None:
    if ignored and not allow_partial:
        first = min(ignored)
        raise PartialLoad(
            f"{len(ignored)} of {count} keys cannot be applied: {first.removeprefix(PREFIX)!r}: {ignored[first]}"
        )


# -- an adapter that is there ------------------------------------------------------------------------------------------


def fill_state(
    state: State, name: str, config: Any, tensors: Mapping[str, Tensor], *, allow_partial: bool = False
) -> Keys:
    """Copies a saved adapter's tensors into one that is there; all of them find a place, or nothing is changed.

    Args:
        state: what is on the model. name: the adapter. config: the saved one's config.
        tensors: PEFT's keys to tensors ``(...)``. allow_partial: leave out what does not fit instead of refusing.

    Raises:
        PartialLoad: a tensor that fits nothing, or one that is missing. DoesNotFit: a tensor of another shape.
        Wrong: an adapter of another method, or of another scale, which would act otherwise here; or a merged model.
    """
    with refusals():
        mine = state.configs[name]
        if method_of(config) != method_of(mine):
            raise Wrong(
                f"the saved adapter is of {method_of(config)}, {name!r} is of {method_of(mine)}: load it under another "
                f"name, or delete {name!r} first"
            )
        starts = [getattr(one, "init_lora_weights", None) for one in (config, mine)]
        if takes_weights(starts[0]) and starts[0] != starts[1]:
            raise DoesNotFit(f"the saved adapter starts with {starts[0]!r}, {name!r} with {starts[1]!r}")
        if name in state.merged:
            raise Wrong(f"cannot fill {name!r} while it is merged; call unmerge_adapter first")
        plan, reading = _plan_fill(state, name, config, tensors)
        _check_networks(state, name, reading.layers)
        if not allow_partial:
            _check_read(reading.ignored, len(tensors), False)
            plan.check()
        _check_alike(state, name, config, reading.config)
        return plan.carry_out(state, name)


@torch.no_grad()
def set_state(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> Keys:
    """Copies tensors into an adapter that is on the model.

    Args:
        model: the base that carries it. tensors: PEFT's keys to tensors ``(...)``. name: the adapter.

    Returns:
        Tensors of the adapter that got nothing, and keys that fit nothing; PEFT's callers look at both.

    Raises:
        Unknown: no adapter has that name. DoesNotFit: a tensor of another shape than the adapter's.
    """
    state = state_of(model)
    with refusals():
        state.check(name)
        return _plan_fill(state, name, state.configs[name], tensors)[0].carry_out(state, name)


def _plan_fill(state: State, name: str, config: Any, tensors: Mapping[str, Tensor]) -> tuple[Plan, Reading]:
    parts = sorted_parts(state.model, config, tensors, name)
    reading = read_parts(state.model, config, parts.layers)
    plan = Plan(unexpected=[key.removeprefix(PREFIX) for key in reading.ignored])
    live = state.own_layers(name)
    common = {key: one for tensors, _ in reading.shared.values() for key, one in tensors.items()}
    for path, adapter in live.items():
        own, given = _wanted(adapter), _as_live(adapter, reading.layers.get(path, {}))
        shared = {key: one for key, one in own.items() if key in adapter.peft.shared}
        for key in shared.keys() & common.keys():
            plan.add(f"{path}.{key}", shared[key], common[key])
        plan.add_all(path, {key: one for key, one in own.items() if key not in shared}, given)
    for path in reading.layers.keys() - live.keys():
        plan.unexpected += [key.removeprefix(PREFIX) for key in reading.keys[path]]
    plan_extras(plan, state, name, parts)
    return plan, reading


def _wanted(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors that a file has of an adapter: a start that is worked into its pair is not among them."""
    return {key: one for key, one in adapter.tensors().items() if key not in ("down0", "up0")}


def _check_networks(state: State, name: str, given: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuses what a network makes (P-tuning) in place of the network: PEFT's folders hold no more."""
    for path, adapter in state.own_layers(name).items():
        made = given.get(path, {}).keys() - adapter.tensors().keys()
        if state.configs[name].is_prompt_learning and made:
            raise DoesNotFit(
                f"{name!r} has a network that makes its virtual tokens, and a folder of PEFT's holds only what the "
                f"network made: delete {name!r} first and load the folder in its place, or load it under another name"
            )


def _as_live(adapter: Adapter, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors from a file in the form that the live adapter has them in.

    A start from the weight (PiSSA) may be the second half of a saved pair, and stays; ranks that AdaLoRA had pruned are
    not in a file, and are pruned here too.

    Raises:
        DoesNotFit: the saved adapter started from other weights.
    """
    own, made = adapter.tensors(), dict(given)
    if "down0" in own and {"down", "up"} <= made.keys():
        rank = own["down"].shape[0]
        if len(made["down"]) == rank:  # PEFT's form, without the start
            return made
        start = made["down"][rank:].to(own["down0"])
        if start.shape != own["down0"].shape or not torch.allclose(start, own["down0"], atol=1e-5):
            raise DoesNotFit(f"the saved adapter started from other weights at {adapter.site.path} than this one")
        made |= {"down": made["down"][:rank], "up": made["up"][:, :rank]}
    if "values" in own and "values" in made and len(made["values"]) < len(own["values"]):
        made = {key: padded(one, torch.zeros_like(own[key], device="cpu")) for key, one in made.items() if key in own}
    return made


def _check_alike(state: State, name: str, config: Any, saved: AdapterConfig) -> None:
    """Refuses a saved adapter that would act otherwise under the live one's config."""
    keys = [getattr(one, "projection_prng_key", None) for one in (config, state.configs[name])]
    if keys[0] != keys[1]:
        raise Wrong(
            f"the saved adapter has projection_prng_key={keys[0]}, {name!r} has {keys[1]}: load it under another name"
        )
    for path, adapter in state.own_layers(name).items():
        mine = adapter.config
        if isinstance(mine, RankedConfig) and isinstance(saved, RankedConfig):
            ours, theirs = mine.scale_at(path), saved.scale_at(path)
            if abs(ours - theirs) > 1e-4 * max(abs(ours), abs(theirs)):
                raise Wrong(
                    f"the saved adapter has the scale {theirs:g} at {path}, {name!r} has {ours:g}: load it under "
                    f"another name, or delete {name!r} first"
                )


class Stray(PartialLoad, RuntimeError):
    """A key that cannot be swapped in; a ``RuntimeError`` too, which is what PEFT raises."""


def read_into(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Returns the core's config and tensors that a file's mean on a model.

    Args:
        model: the base. config: PEFT's config. tensors: PEFT's keys to tensors ``(...)``. name: an adapter's name that
            may stand in the keys.

    Raises:
        Stray: a key that fits nothing, or that belongs to more than layers.
    """
    parts = sorted_parts(model, config, tensors, name)
    reading = read_parts(model, config, parts.layers)
    stray: Iterable[str] = [*reading.ignored, *parts.parameters, *parts.modules, *parts.tokens]
    for first in stray:
        why = reading.ignored.get(first, "only the tensors of layers can be swapped")
        named = re.sub(r"(\.lora_\w+)", rf"\1.{name}", first, count=1)
        raise Stray(
            f"Hot swapping the adapter did not succeed, unexpected keys found: {named} ({first!r} cannot be swapped "
            f"in: {why})"
        )
    ours, layers = start_of_file(model, config, reading.config, reading.layers)
    for tensors in layers.values():
        if "down0" in tensors:
            tensors["down"], tensors["up"] = fold_start(tensors)
            del tensors["down0"], tensors["up0"]
    return (dataclasses.replace(ours, init="kaiming") if hasattr(ours, "init") else ours), layers
