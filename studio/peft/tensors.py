"""An adapter's tensors under PEFT's names: out of a model, into a model, and out of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from studio.adapters import AdapterConfig, install
from studio.errors import DoesNotFit, PartialLoad
from studio.files.detect import sort_keys
from studio.files.format import FORMATS, Source
from studio.files.header import DTYPES, TensorInfo
from studio.files.names import Names
from studio.files.peft import CONFIG_FILE
from studio.files.reading import Reading, read_layers
from studio.files.save import spelled
from studio.files.soft import read_soft
from studio.peft.configs.prompts import prompt_state
from studio.peft.configs.select import ends_with, names_in
from studio.peft.configs.translate import method_of
from studio.peft.injection import Injection, injection_of
from studio.peft.kinds import VERSION, refusals
from studio.peft.tokens import TOKEN_KEY, fill_tokens

__all__ = ["Keys", "adapts_embeddings", "get_state", "install_state", "read_into", "set_state"]

PREFIX: Final = "base_model.model."
_SHARED: Final = "base_model."
"""What begins the key of a tensor that all layers share, once the whole prefix is off."""
_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}


class Keys(NamedTuple):
    """Which keys of a state dict found no place, and which tensors found no key."""

    missing_keys: list[str]
    unexpected_keys: list[str]


# -- out of a model ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def get_state(model: nn.Module, name: str, *, prefix: str = PREFIX, embeddings: bool = False) -> dict[str, Tensor]:
    """Returns an adapter's tensors under PEFT's names.

    Args:
        model: the base that carries it. name: the adapter. prefix: what every key begins with.
        embeddings: whether the base's embeddings are put beside them.
    """
    injection = injection_of(model)
    with refusals():
        injection.check(name)
        injection.bound()
        if injection.peft_config[name].is_prompt_learning:
            return prompt_state(injection.layers_of(name), name)
        found: dict[str, Tensor] = {}
        for core in injection.cores(name):
            _, tensors = spelled(model, core, FORMATS["peft"])
            for key, tensor in tensors.items():
                bare = key.removeprefix(PREFIX)
                found[bare if core == name else bare.replace(".trainable_tokens_delta", TOKEN_KEY)] = tensor
    extras = injection.extras[name]
    for path, module in extras.modules.items():
        found |= {f"{path}.{key}": tensor for key, tensor in module.state_dict().items()}
    for path, parameter in extras.parameters.items():
        found[_with_base_layer(injection, path)] = parameter.detach()
    if embeddings:
        for path, module in _embeddings(model).items():
            key = _with_base_layer(injection, f"{path}.weight")
            found[key] = module._parameters["weight"].detach()  # type: ignore[union-attr]
    return {key if key.startswith(_SHARED) else prefix + key: tensor for key, tensor in found.items()}


def _with_base_layer(injection: Injection, path: str) -> str:
    """PEFT's name of a base's tensor: an adapted layer's own tensors are those of its ``base_layer``."""
    module, _, last = path.rpartition(".")
    return f"{module}.base_layer.{last}" if module in injection.paths() else path


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    ask = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    wanted = {id(one()) for one in ask if callable(one)}
    return {name: module for name, module in names_in(model).items() if id(module) in wanted}


def adapts_embeddings(model: nn.Module, name: str) -> bool:
    """Says whether an adapter changes the input or the output embedding of a model, single rows aside."""
    injection = injection_of(model)
    if injection.peft_config[name].word == "TRAINABLE_TOKENS":
        return False
    embeddings = set(_embeddings(model))
    return any(path in embeddings for path, _ in injection.layers_of(name))


# -- into a model ------------------------------------------------------------------------------------------------------


class _Parts(NamedTuple):
    """The tensors of a file, by what they belong to; keys without the prefix."""

    layers: dict[str, Tensor]
    modules: dict[str, dict[str, Tensor]]
    parameters: dict[str, Tensor]
    tokens: dict[str, Tensor]


def _bare(key: str, name: str) -> str:
    """A key without its prefix, and without an adapter's name that stands in it."""
    key = key.removeprefix(PREFIX)
    return re.sub(rf"\.(lora_[AB]|lora_embedding_[AB]|modules_to_save)\.{re.escape(name)}\.", r".\1.", key)


def _sorted(model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str) -> _Parts:
    """Puts apart what belongs to layers, to whole modules, and to the base's own parameters."""
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


def _read(model: nn.Module, config: Any, tensors: Mapping[str, Tensor]) -> Reading:
    """Brings the tensors of layers into the core's form."""
    fields = config.to_dict()
    fields |= {name: value for name, value in _SETTLED.items() if name in fields}
    fields["peft_version"] = fields.get("peft_version") or VERSION
    bare = config.is_prompt_learning
    keyed = {key if bare or key.startswith(_SHARED) else PREFIX + key: one for key, one in tensors.items()}
    infos = {
        key: TensorInfo(_WORDS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, 0)
        for key, tensor in keyed.items()
    }
    source = Source(Path(CONFIG_FILE).parent, infos, keyed, {}, fields)
    if config.is_prompt_learning:
        return read_soft(model, source, None, method_of(config))
    method = method_of(config)
    return read_layers(Names(model), source, sort_keys(infos, method), method, None)


_SETTLED: Final = {"bias": "none", "trainable_token_indices": None, "init_lora_weights": True, "modules_to_save": None}
"""Fields that say what this module has dealt with when the tensors of layers are read."""


def install_state(
    injection: Injection,
    name: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    trainable: bool,
    partial: bool = False,
    active: bool = True,
) -> Keys:
    """Adds an adapter with given tensors; all of them find a place, or nothing is changed.

    Args:
        injection: what is on the model. name: the adapter's name. config: its config.
        tensors: PEFT's keys to tensors. trainable: whether it is trained.
        partial: leave out what does not fit instead of refusing.
        active: whether it acts, if no other does.

    Raises:
        PartialLoad: a tensor that fits nothing, or one that is missing.
    """
    model = injection.model
    config.inference_mode = not trainable
    parts = _sorted(model, config, tensors, name)
    with refusals():
        injection.check_new(name, config)
        reading = _read(model, config, parts.layers)
        unexpected = sorted(key.removeprefix(PREFIX) for key in reading.ignored)
        if unexpected and not partial:
            first = unexpected[0]
            raise PartialLoad(
                f"{len(unexpected)} of {len(tensors)} keys cannot be applied: {first!r}: "
                f"{reading.ignored.get(PREFIX + first) or reading.ignored.get(first)}"
            )
        if not reading.layers:
            raise DoesNotFit("none of the keys fits the model")
        ours = reading.config
        layers = {path: dict(found) for path, found in reading.layers.items()}

        def place() -> None:
            install(model, ours, layers, name=name, trainable=trainable)

        injection.put(name, config, place, active=active)
        try:
            missing = _fill_extras(injection, name, parts, strict=not partial)
        except BaseException:
            injection.remove(name)
            raise
    return Keys(missing, unexpected)


def _fill_extras(injection: Injection, name: str, parts: _Parts, *, strict: bool) -> list[str]:
    """Copies tensors of whole modules and of the base's parameters to where the adapter has them."""
    extras, missing = injection.extras[name], []
    for path, module in extras.modules.items():
        given = parts.modules.get(path, {})
        _check_shapes(path, module.state_dict(), given)
        found = module.load_state_dict(given, strict=False)
        missing += [f"{path}.{key}" for key in found.missing_keys]
        if strict and found.unexpected_keys:
            raise PartialLoad(f"the file has {path}.{found.unexpected_keys[0]}, which the module does not have")
    for path, parameter in extras.parameters.items():
        if path in parts.parameters:
            _copy(path, parameter, parts.parameters[path])
        else:
            missing.append(path)
    for path, tensor in parts.parameters.items():
        if path not in extras.parameters:
            stand_in = nn.Parameter(tensor.detach().clone(), requires_grad=False)
            _check_shapes(path, {"": injection.model.get_parameter(path)}, {"": stand_in})
            extras.parameters[path] = stand_in
    missing += [path + TOKEN_KEY for path in fill_tokens(injection, name, parts.tokens)]
    if missing and strict:
        raise PartialLoad(f"the file lacks {len(missing)} tensors that the config asks for, {missing[0]!r} first")
    injection.sync()
    return missing


def _check_shapes(path: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for key, tensor in given.items():
        if key in own and own[key].shape != tensor.shape:
            raise DoesNotFit(
                f"size mismatch for {path}.{key}: the file has {tuple(tensor.shape)}, the model {tuple(own[key].shape)}"
            )


@torch.no_grad()
def _copy(path: str, live: Tensor, tensor: Tensor) -> None:
    if live.shape != tensor.shape:
        raise DoesNotFit(f"size mismatch for {path}: the file has {tuple(tensor.shape)}, the model {tuple(live.shape)}")
    live.copy_(tensor)


@torch.no_grad()
def set_state(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> Keys:
    """Copies tensors into an adapter that is on the model.

    Returns:
        Tensors of the adapter that got nothing, and keys that fit nothing; PEFT's callers look at both.

    Raises:
        Wrong: a tensor of another shape than the adapter's.
    """
    injection = injection_of(model)
    with refusals():
        injection.check(name)
        config = injection.peft_config[name]
        parts = _sorted(model, config, tensors, name)
        reading = _read(model, config, parts.layers)
        live = dict(injection.layers_of(name))
        unexpected = [key.removeprefix(PREFIX) for key in reading.ignored]
        missing: list[str] = []
        filled: set[str] = set()
        for path, found in reading.layers.items():
            if path not in live:
                unexpected += [key.removeprefix(PREFIX) for key in reading.keys[path]]
                continue
            own = live[path].tensors()
            for key, tensor in found.items():
                if key not in own:
                    unexpected.append(f"{path}.{key}")
                    continue
                _copy(f"{path}.{key}", own[key], tensor)
                filled.add(f"{path}.{key}")
        for path, adapter in live.items():
            missing += [f"{path}.{key}" for key in adapter.tensors() if f"{path}.{key}" not in filled]
        missing += _fill_extras(injection, name, parts, strict=False)
    return Keys(sorted(missing), sorted(unexpected))


def read_into(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Returns the core's config and tensors that a file's mean on a model.

    Raises:
        PartialLoad: a key that fits nothing, or that belongs to more than layers.
    """
    parts = _sorted(model, config, tensors, name)
    reading = _read(model, config, parts.layers)
    stray = [*reading.ignored, *parts.parameters, *parts.modules, *parts.tokens]
    if stray:
        why = reading.ignored.get(stray[0], "only the tensors of layers can be swapped")
        raise PartialLoad(f"{len(stray)} keys cannot be swapped in, {stray[0]!r} first: {why}")
    return reading.config, {path: dict(found) for path, found in reading.layers.items()}
