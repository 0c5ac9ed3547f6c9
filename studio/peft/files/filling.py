"""An adapter's tensors into a model: from PEFT's keys to the layers, copies, parameters and rows that they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from studio.adapters import AdapterConfig, install
from studio.errors import DoesNotFit, PartialLoad
from studio.files.detect import sort_keys
from studio.files.format import Source
from studio.files.header import DTYPES, TensorInfo
from studio.files.names import Names
from studio.files.peft import CONFIG_FILE
from studio.files.reading import Reading, read_layers
from studio.files.soft import read_soft
from studio.peft.configs.select import ends_with, names_in
from studio.peft.configs.translate import method_of
from studio.peft.files.tensors import PREFIX, SHARED
from studio.peft.model.adding import check_new, put
from studio.peft.model.removing import delete_adapter
from studio.peft.model.stand_ins import swap
from studio.peft.model.state import State, state_of
from studio.peft.model.tokens import TOKEN_KEY, fill_tokens
from studio.peft.terms.errors import refusals
from studio.peft.terms.types import VERSION

__all__ = ["Keys", "install_state", "read_into", "set_state"]

_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}
_SETTLED: Final = {"bias": "none", "trainable_token_indices": None, "init_lora_weights": True, "modules_to_save": None}
"""Fields that say what this module has dealt with when the tensors of layers are read."""


class Keys(NamedTuple):
    """Which keys of a state dict found no place, and which tensors found no key."""

    missing_keys: list[str]
    unexpected_keys: list[str]


# -- what belongs to what ----------------------------------------------------------------------------------------------


class _Parts(NamedTuple):
    """The tensors of a file, by what they belong to; keys without the prefix."""

    layers: dict[str, Tensor]
    modules: dict[str, dict[str, Tensor]]
    parameters: dict[str, Tensor]
    tokens: dict[str, Tensor]


def _sorted(model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str) -> _Parts:
    """Puts apart what belongs to layers, to whole modules, to the base's own parameters and to rows of tokens."""
    saved = getattr(config, "modules_to_save", None) or ()
    modules = {path for path in names_in(model) if any(ends_with(path, one) for one in saved)}
    parameters = {path for path, _ in model.named_parameters() if ".adapters." not in path}
    parts = _Parts({}, {}, {}, {})
    for key, tensor in tensors.items():
        bare = _bare(key, name)
        inside = next((path for path in modules if bare.startswith(path + ".")), None)
        plain = bare.replace(".base_layer.", ".")
        if inside is not None:
            rest = bare[len(inside) + 1 :].removeprefix("modules_to_save.")
            parts.modules.setdefault(inside, {})[rest] = tensor
        elif bare.endswith(TOKEN_KEY):
            parts.tokens[bare.removesuffix(TOKEN_KEY).removesuffix(".base_layer")] = tensor
        elif plain in parameters and not bare.endswith(("lora_A.weight", "lora_B.weight")):
            parts.parameters[plain] = tensor
        else:
            parts.layers[bare] = tensor
    return parts


def _bare(key: str, name: str) -> str:
    """A key without its prefix, and without an adapter's name that stands in it."""
    key = key.removeprefix(PREFIX)
    return re.sub(rf"\.(lora_[AB]|lora_embedding_[AB]|modules_to_save)\.{re.escape(name)}\.", r".\1.", key)


def _read(model: nn.Module, config: Any, tensors: Mapping[str, Tensor]) -> Reading:
    """Brings the tensors of layers into the core's form."""
    fields = config.to_dict()
    fields |= {name: value for name, value in _SETTLED.items() if name in fields}
    fields["peft_version"] = fields.get("peft_version") or VERSION
    virtual, method = config.is_prompt_learning, method_of(config)
    keyed = {key if virtual or key.startswith(SHARED) else PREFIX + key: one for key, one in tensors.items()}
    infos = {
        key: TensorInfo(_WORDS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, 0)
        for key, tensor in keyed.items()
    }
    source = Source(Path(CONFIG_FILE).parent, infos, keyed, {}, fields)
    if virtual:
        return read_soft(model, source, None, method)
    return read_layers(Names(model), source, sort_keys(infos, method), method, None)


def _copied(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {path: dict(found) for path, found in layers.items()}


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
    parts = _sorted(model, config, tensors, name)
    with refusals():
        check_new(state, name, config)
        reading = _read(model, config, parts.layers)
        unexpected = sorted(key.removeprefix(PREFIX) for key in reading.ignored)
        if unexpected and not allow_partial:
            first = unexpected[0]
            raise PartialLoad(
                f"{len(unexpected)} of {len(tensors)} keys cannot be applied: {first!r}: "
                f"{reading.ignored.get(PREFIX + first) or reading.ignored.get(first)}"
            )
        if not reading.layers:
            raise DoesNotFit("none of the keys fits the model")
        layers = _copied(reading.layers)
        put(state, name, config, partial(install, model, reading.config, layers, name=name, trainable=trainable))
        try:
            missing = _fill_extras(state, name, parts, strict=not allow_partial)
        except BaseException:
            delete_adapter(state, name)
            raise
    return Keys(missing, unexpected)


def _fill_extras(state: State, name: str, parts: _Parts, *, strict: bool) -> list[str]:
    """Copies tensors of whole modules, of the base's parameters and of rows to where the adapter has them."""
    missing = [
        *_fill_modules(state, name, parts.modules, strict=strict),
        *_fill_parameters(state, name, parts.parameters),
        *(path + TOKEN_KEY for path in fill_tokens(state, name, parts.tokens)),
    ]
    if missing and strict:
        raise PartialLoad(f"the file lacks {len(missing)} tensors that the config asks for, {missing[0]!r} first")
    swap(state)
    return missing


def _fill_modules(state: State, name: str, tensors: Mapping[str, dict[str, Tensor]], *, strict: bool) -> list[str]:
    missing = []
    for path, module in state.extras[name].modules.items():
        given, own = tensors.get(path, {}), module.state_dict()
        for key in given.keys() & own.keys():
            _check_shape(f"{path}.{key}", own[key], given[key])
        found = module.load_state_dict(given, strict=False)
        missing += [f"{path}.{key}" for key in found.missing_keys]
        if strict and found.unexpected_keys:
            raise PartialLoad(f"the file has {path}.{found.unexpected_keys[0]}, which the module does not have")
    return missing


def _fill_parameters(state: State, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Fills the parameters that stand in for the base's; those that the file alone has stand in from now on."""
    own = state.extras[name].parameters
    missing = [path for path in own if path not in tensors]
    for path, tensor in tensors.items():
        if path in own:
            _copy(path, own[path], tensor)
        else:
            _check_shape(path, state.model.get_parameter(path), tensor)
            own[path] = nn.Parameter(tensor.detach().clone(), requires_grad=False)
    return missing


def _check_shape(path: str, live: Tensor, tensor: Tensor) -> None:
    if live.shape != tensor.shape:
        raise DoesNotFit(f"size mismatch for {path}: the file has {tuple(tensor.shape)}, the model {tuple(live.shape)}")


@torch.no_grad()
def _copy(path: str, live: Tensor, tensor: Tensor) -> None:
    _check_shape(path, live, tensor)
    live.copy_(tensor)


# -- an adapter that is there ------------------------------------------------------------------------------------------


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
        config = state.configs[name]
        parts = _sorted(model, config, tensors, name)
        reading = _read(model, config, parts.layers)
        unexpected = [key.removeprefix(PREFIX) for key in reading.ignored]
        live = {path: adapter.tensors() for path, adapter in state.own_layers(name).items()}
        wanted = {f"{path}.{key}": tensor for path, own in live.items() for key, tensor in own.items()}
        for path, found in reading.layers.items():
            if path not in live:
                unexpected += [key.removeprefix(PREFIX) for key in reading.keys[path]]
                continue
            for key, tensor in found.items():
                own = wanted.pop(f"{path}.{key}", None)
                if own is None:
                    unexpected.append(f"{path}.{key}")
                else:
                    _copy(f"{path}.{key}", own, tensor)
        missing = [*wanted, *_fill_extras(state, name, parts, strict=False)]
    return Keys(sorted(missing), sorted(unexpected))


def read_into(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Returns the core's config and tensors that a file's mean on a model.

    Args:
        model: the base. config: PEFT's config. tensors: PEFT's keys to tensors ``(...)``. name: an adapter's name that
            may stand in the keys.

    Raises:
        PartialLoad: a key that fits nothing, or that belongs to more than layers.
    """
    parts = _sorted(model, config, tensors, name)
    reading = _read(model, config, parts.layers)
    stray = [*reading.ignored, *parts.parameters, *parts.modules, *parts.tokens]
    if stray:
        why = reading.ignored.get(stray[0], "only the tensors of layers can be swapped")
        raise PartialLoad(f"{len(stray)} keys cannot be swapped in, {stray[0]!r} first: {why}")
    return reading.config, _copied(reading.layers)
