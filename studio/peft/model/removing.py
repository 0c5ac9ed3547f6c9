"""Taking adapters off: one, all, or all with what they change left in the weights."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.adapters import detach
from studio.adapters.sites.read import module_at
from studio.peft.model.activity import check_together, enable_adapter_layers, let_act, train_active
from studio.peft.model.copies import drop_copy
from studio.peft.model.dressing import dress_all, undress
from studio.peft.model.merging import fold_again, merge_adapter, take_out
from studio.peft.model.rows import check_rows
from studio.peft.model.stand_ins import put_parameter, swap
from studio.peft.model.state import KEY, Extras, State, as_names
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = ["before_each_call", "delete_adapter", "forget", "lend", "merge_and_unload", "unload"]


def delete_adapter(state: State, adapter_name: str | Sequence[str]) -> None:
    """Takes an adapter off, or several; if none that acted remains, the first that does acts in their place.

    Raises:
        Unknown: no adapter has that name. Wrong: it is merged.
    """
    names = as_names(adapter_name)
    with refusals():
        state.check(*names)
        merged = [name for name in names if name in state.merged]
        if merged:
            raise Wrong(f"Cannot delete adapter(s) {merged} while they are merged. Please unmerge them first.")
        acted = [name for name in names if name in state.active]
        take_out(state)
        for name in dict.fromkeys(names):
            forget(state, name)
        dress_all(state)
        if acted and not state.active and state.configs:
            first = next(iter(state.configs))
            warnings.warn(
                f"Adapter {acted[0]} was active which is now deleted. Setting active adapter to {first}.",
                PeftWarning,
                stacklevel=4,
            )
            let_act(state, [first])
        fold_again(state)
        train_active(state)


def forget(state: State, name: str) -> None:
    """Takes off all that belongs to an adapter, while nothing is merged; with the last one the state goes too."""
    extras = state.extras.pop(name, Extras())
    swap(state)  # which finds nothing of it to put in the base's place
    for path in extras.modules:
        drop_copy(state, path, name)
    modules = [adapter.site.module for _, adapter in state.layers(name)]
    for core in state.cores(name):
        detach(state.model, core)
    undress(modules)
    state.configs.pop(name, None)
    if not state.configs:
        state.model.__dict__.pop(KEY, None)
        if state.hook is not None:
            state.hook.remove()
            state.hook = None


def unload(state: State) -> nn.Module:
    """Takes everything off and returns the base, which is what it was."""
    take_out(state)
    state.waiting = None
    for name in list(state.configs):
        forget(state, name)
    state.model.__dict__.pop("peft_config", None)
    return state.model


# -- with what they change left in the weights -------------------------------------------------------------------------


def merge_and_unload(
    state: State, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
) -> nn.Module:
    """Makes the merged weights the base's own, takes everything else off and returns the base.

    What the adapters have beside their layers, copies of modules and parameters, stays.

    Raises:
        Unknown: no adapter has that name. Wrong: two of them stand in for the same thing, or a weight that would become
            infinite or NaN (with ``safe_merge``).
    """
    wanted = list(state.active if adapter_names is None else adapter_names)
    model = state.model
    with refusals():
        state.check(*wanted)
        check_rows(state, [*state.merged, *(name for name in wanted if name not in state.merged)])
        check_together(state, wanted)
        if state.assembly.levels.silent:
            enable_adapter_layers(state)
        wanted = list(dict.fromkeys([*state.merged, *wanted]))
        merge_adapter(state, wanted, safe_merge)
        baked = _baked_tensors(state)
        extras = [state.extras[name] for name in wanted]
        unload(state)
    tied = _tied(model)
    for path, module in ((path, module) for one in extras for path, module in one.modules.items()):
        above, _, last = path.rpartition(".")
        cast(nn.Module, module_at(model, above))._modules[last] = module.requires_grad_(True)
    for path, parameter in ((path, parameter) for one in extras for path, parameter in one.parameters.items()):
        put_parameter(model, path, parameter)
    for holder, table, key, tensor in baked:
        getattr(holder, table)[key] = tensor
    _tie(model, tied)
    _untie(model)
    return model


def _baked_tensors(state: State) -> list[tuple[nn.Module, str, str, Tensor]]:
    """The merged tensors as they are now, and where each stands."""
    found: list[tuple[nn.Module, str, str, Tensor]] = []
    assembly = state.assembly
    for path, held in assembly.originals.items():
        module = assembly.mounts[path].site.module
        for table, key, original in held:
            now = getattr(module, table)[key]
            if original is not None and isinstance(now, nn.Parameter):
                now.requires_grad_(now.is_floating_point())
            found.append((module, table, key, now))
    return found


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [some for some in names.values() if len(some) > 1]


def _tie(model: nn.Module, names: Sequence[Sequence[str]]) -> None:
    """Makes one parameter again of those that were one and that a merge has changed alike."""
    now = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in names:
        for other in others:
            if now[other] is not now[first] and torch.equal(now[other], now[first]):
                put_parameter(model, other, now[first])


def _untie(model: nn.Module) -> None:
    """Says in the model's config that its embeddings are no longer tied, where a merge has untied them."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "tie_word_embeddings", False):
        return
    ask = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    found = [one() for one in ask if callable(one)]
    if len(found) == 2 and None not in found and found[0].weight is not found[1].weight:
        config.tie_word_embeddings = False


# -- before each call --------------------------------------------------------------------------------------------------


def lend(state: State) -> None:
    """Notes that somebody has a base layer in hand, and may put it where the adapted one was (diffusers does)."""
    state.lent = True
    before_each_call(state)


def before_each_call(state: State) -> None:
    """Takes care of lent layers and of bounds before each call of the model from now on."""
    if state.hook is None:
        state.hook = state.model.register_forward_pre_hook(functools.partial(_before_call, state), prepend=True)


def _before_call(state: State, model: nn.Module, args: Any) -> None:
    sites = [adapter.site for name in state.configs for _, adapter in state.layers(name)] if state.lent else []
    if sites and all(module_at(model, site.path) is not site.module for site in sites):
        unload(state)  # every adapted layer has been replaced by its base
    else:
        state.bound()
