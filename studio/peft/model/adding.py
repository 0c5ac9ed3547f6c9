"""Putting adapters on a model: new ones from their configs, and those whose tensors are there already."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from studio.adapters import METHODS, AdapterConfig, Site, attach, install
from studio.adapters.contract.ranked import any_rank
from studio.adapters.hosting.assembly import site_at
from studio.errors import DoesNotFit
from studio.files.format import FORMATS
from studio.files.save import spelled
from studio.peft.configs.config import PeftConfig
from studio.peft.configs.experts import name_experts
from studio.peft.configs.prompts import note_sizes, prompt_config, sizes_in_file, source_of, start_from
from studio.peft.configs.select import parameters_of, select
from studio.peft.configs.translate import method_of, random_start, translate
from studio.peft.model.activity import disable_adapter_layers, let_act, train_active
from studio.peft.model.copies import give_copies
from studio.peft.model.dressing import dress_all
from studio.peft.model.removing import before_each_call, forget
from studio.peft.model.stand_ins import give_biases
from studio.peft.model.starts import drop_eigens, pairs_of_eigens
from studio.peft.model.state import KEY, Extras, State, owner_of
from studio.peft.model.tokens import add_tokens
from studio.peft.model.tying import note_tying, tie
from studio.peft.model.waiting import send_away
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = ["add", "cast_down", "check_new", "put"]


def add(
    state: State,
    name: str,
    config: PeftConfig,
    *,
    autocast: bool = True,
    waits: bool = False,
    calibrate: Any = None,
    original: Any = None,
) -> None:
    """Attaches a new adapter; it acts from now on if no other does.

    Args:
        state: what is on the model. name: the adapter's name. config: its config.
        autocast: keep half-precision adapters in fp32.
        waits: whether it is put on the meta device, because a file will be read into it.
        calibrate, original: what a start from data, or from a quantised base, is made from (:func:`studio.attach`).

    Raises:
        Wrong: a taken name, or a field that the studio does not have. NoMatchingPeftModuleError: a target that fits
            nothing. UnsupportedLayer: a layer that the method cannot change.
    """
    with refusals():
        check_new(state, name, config)
        if config.is_prompt_learning:
            ours, sites = prompt_config(config, state.model), {}
        else:
            name_experts(config, state.model)
            paths = select(state.model, config, METHODS[method_of(config)].adapter.kinds)
            sites = _preprocessed(state, config, paths, calibrate)
            ours = translate(_without_files(config) if sites else config, state.model, paths)
        if sites:
            pairs = pairs_of_eigens(sites, ours)
            place = partial(install, state.model, ours, pairs, name=name, trainable=True)
        else:
            place = partial(_attach, state, name, ours, calibrate, original)
        source = source_of(config)
        put(state, name, config, place)
        state.extras[name].preprocessed = bool(sites)
        drop_eigens(sites)
        for adapter in state.own_layers(name).values():
            random_start(config, adapter.tensors(), adapter.trained)
        if config.is_prompt_learning:
            _start_from(state, name, source)
            note_sizes(config, state.own_layers(name).items())
        else:
            _note_tying(state, name, config)
        _warn_unsavable(state, name)
        if not autocast:
            cast_down(state, name)
        if waits and not config.is_prompt_learning:
            send_away(state, name)


def _note_tying(state: State, name: str, config: Any) -> None:
    rows = state.token_layers(name) if getattr(config, "ensure_weight_tying", False) else ()
    own = (path for path, one in state.own_layers(name).items() if not one.tied)  # rows of tokens are tied in any case
    note_tying(state.model, config, {*own, *rows, *state.extras[name].modules})


def _start_from(state: State, name: str, source: Mapping[str, Tensor]) -> None:
    try:
        start_from(source, state.own_layers(name).items())
    except BaseException:
        forget(state, name)
        raise


def _preprocessed(state: State, config: Any, paths: Sequence[str], calibrate: Any) -> dict[str, Site]:
    """The layers that start from what ``preprocess_corda`` found: all, or none where the start is another."""
    if calibrate is not None or getattr(config, "init_lora_weights", None) != "corda":
        return {}
    return {path: site_at(state.model, path, METHODS[method_of(config)].adapter.kinds) for path in paths}


def _without_files(config: Any) -> Any:
    """A config without what ``preprocess_corda`` has dealt with."""
    made = copy.copy(config)
    made.corda_config = None
    return made


def _attach(state: State, name: str, config: AdapterConfig, calibrate: Any, original: Any) -> None:
    # a seed from torch's own generator, so that torch.manual_seed decides the start, as in PEFT
    seed = int(torch.randint(2**31 - 1, (), device="cpu").item())
    with any_rank():
        attach(state.model, config, name=name, seed=seed, calibrate=calibrate, original=original)


def _note_beside(state: State, name: str) -> None:
    """Tells the core what it does not see of an adapter, so that it does not save it without that."""
    extras, record = state.extras[name], state.assembly.records.get(name)
    if record is not None:
        record.beside = (*extras.modules, *extras.parameters, *state.token_layers(name))


def put(state: State, name: str, config: PeftConfig, place: Callable[[], None], *, active: bool = True) -> None:
    """Adds an adapter whose layers ``place`` puts on the model.

    Args:
        state: what is on the model. name: the adapter's name. config: its config.
        place: attaches the core's adapter of that name. active: whether it acts, if no other does.

    Raises:
        Wrong: a taken name, or merged adapters on the model.
    """
    with refusals():
        check_new(state, name, config)
        if state.merged:
            raise Wrong(f"cannot add an adapter while {', '.join(state.merged)} is merged; call unmerge_adapter first")
        disabled, beside = state.disabled, parameters_of(state.model, config)
        place()
        _share(state, name)
        state.assembly.freeze_base()
        state.configs[name], state.extras[name] = config, Extras(beside=beside)
        try:
            give_copies(state, name, config)
            tie(state, name)
            give_biases(state, name, config)
            add_tokens(state, name, config)
            _note_beside(state, name)
        except BaseException:
            forget(state, name)
            raise
        state.model.__dict__[KEY] = state
        dress_all(state)
        if getattr(config, "coft", False):
            before_each_call(state)
        others = {core: one for core, one in state.assembly.levels.strengths.items() if owner_of(core) != name}
        if others or not active:
            state.assembly.set(others)  # the core lets what is new act
        else:
            let_act(state, [name])
        if disabled:
            disable_adapter_layers(state)
        train_active(state)


def _share(state: State, name: str) -> None:
    """Lets a new adapter hold the matrices of another one, where all layers share some and they are the same."""
    for adapter in state.own_layers(name).values():
        for key, theirs in adapter.peft.shared.items():
            mine = adapter._buffers.get(key)
            if mine is None:
                continue
            for other in state.shared(theirs).values():
                if (other.device, other.dtype) == (mine.device, mine.dtype) and torch.equal(other, mine):
                    adapter._buffers[key] = other


def check_new(state: State, name: str, config: PeftConfig) -> None:
    """Checks that an adapter can be added.

    Args:
        state: what is on the model. name: the adapter's name. config: its config.

    Raises:
        Wrong: the name is taken, or a second adapter has biases of its own.
    """
    if name in state.configs:
        raise Wrong(f"Adapter with name {name!r} already exists. Please use a different name.")
    biased = [one for one in state.configs.values() if getattr(one, "bias", "none") != "none"]
    if biased and getattr(config, "bias", "none") != "none":
        raise Wrong(
            f"{type(config).__name__} supports only 1 adapter with bias. When using multiple adapters, set bias to "
            "'none' for all adapters."
        )


@torch.no_grad()
def cast_down(state: State, name: str) -> None:
    """Keeps an adapter in its layers' own half precision."""
    for _, adapter in state.layers(name):
        dtype = adapter.site.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            adapter.to(dtype)
    tie(state, name)


def _warn_unsavable(state: State, name: str) -> None:
    """Says before a training, and not after it, that its adapter is none that PEFT could read."""
    try:
        if state.configs[name].is_prompt_learning:
            sizes_in_file(state.own_layers(name).values())
        else:
            spelled(state.model, name, FORMATS["peft"])
    except DoesNotFit as reason:
        warnings.warn(
            f"save_pretrained will refuse this adapter ({reason}); what is trained can be saved with "
            f"studio.save(model.get_base_model(), 'adapter.safetensors', name={name!r})",
            PeftWarning,
            stacklevel=6,
        )
