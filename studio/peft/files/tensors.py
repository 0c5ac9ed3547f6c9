"""An adapter's tensors out of a model, under PEFT's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.files.format import FORMATS
from studio.files.save import spelled
from studio.peft.configs.prompts import prompt_state
from studio.peft.configs.select import names_in
from studio.peft.model.starts import in_pefts_form
from studio.peft.model.state import State, state_of
from studio.peft.model.tokens import TOKEN_KEY
from studio.peft.terms.errors import refusals

__all__ = ["PREFIX", "SHARED", "adapts_embeddings", "get_state"]

PREFIX: Final = "base_model.model."
SHARED: Final = "base_model."
"""What begins the key of a tensor that all layers share, once the whole prefix is off."""


@torch.no_grad()
def get_state(
    model: nn.Module,
    name: str,
    *,
    prefix: str = PREFIX,
    embeddings: bool = False,
    plain: bool = False,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns an adapter's tensors under PEFT's names.

    Args:
        model: the base that carries it. name: the adapter. prefix: what every key begins with.
        embeddings: whether the base's embeddings are put beside them.
        plain: whether a start out of the weights is worked into the pair, of twice the rank, in any case.
        given: values that stand in for the live ones, ``(...)``, under PEFT's names with the adapter's in them.

    Raises:
        Unknown: no adapter has that name. DoesNotFit: one that no folder of PEFT's can hold.
    """
    state = state_of(model)
    with refusals():
        state.check(name)
        state.bound()
        if state.configs[name].is_prompt_learning:
            found = prompt_state(state.own_layers(name).items(), name)
            return found | {SHARED + key: tensor for key, tensor in _beside(state, name).items()}
        found = _layers(state, name)
        if not plain and in_pefts_form(state, name):
            found = _without_start(state, name, found)
    found |= _beside(state, name)
    whole = {path: parameter.detach() for path, parameter in state.extras[name].parameters.items()}
    if embeddings:
        whole |= {f"{path}.weight": cast(Tensor, module._parameters["weight"]).detach()
                  for path, module in _embeddings(model).items()}  # fmt: skip
    found |= {_with_base_layer(state, path): tensor for path, tensor in _once(state, whole).items()}
    named = {key if key.startswith(SHARED) else prefix + key: tensor for key, tensor in found.items()}
    with refusals():
        return named if given is None else _from(given, named, name)


def _from(given: Mapping[str, Tensor], named: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The values that are given in the place of live ones, under the names of the file.

    Raises:
        DoesNotFit: one has another number of entries than its place.
    """
    bare = {key.replace(f".{name}.", ".").removesuffix(f".{name}"): one for key, one in given.items()}
    found = {key: bare.get(key, tensor) for key, tensor in named.items()}
    for key, tensor in found.items():
        if tensor.numel() != named[key].numel():
            raise DoesNotFit(
                f"the state dict has {key} as {tuple(tensor.shape)}, and {tuple(named[key].shape)} is to be saved"
            )
    return {key: tensor.detach().reshape(named[key].shape) for key, tensor in found.items()}


def _beside(state: State, name: str) -> dict[str, Tensor]:
    """The tensors of the modules that an adapter has copies of."""
    modules = state.extras[name].modules
    return {f"{path}.{key}": one for path, module in modules.items() for key, one in module.state_dict().items()}


def _once(state: State, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor under one of its names (embeddings may be tied): that of an adapted layer, else its first."""
    adapted = set(state.paths())
    found: dict[int, tuple[str, Tensor]] = {}
    for path, tensor in whole.items():
        if tensor.data_ptr() not in found or path.rpartition(".")[0] in adapted:
            found[tensor.data_ptr()] = path, tensor
    return dict(found.values())


def _layers(state: State, name: str) -> dict[str, Tensor]:
    """The tensors of an adapter's layers and of its token rows; keys without the prefix."""
    found: dict[str, Tensor] = {}
    for core in state.cores(name):
        for key, tensor in spelled(state.model, core, FORMATS["peft"])[1].items():
            bare = key.removeprefix(PREFIX)
            found[bare if core == name else bare.replace(".trainable_tokens_delta", TOKEN_KEY)] = tensor
    return found


def _without_start(state: State, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first halves of pairs whose second halves are a start that PEFT makes anew."""
    names = {id(one.site.module): one.tensors()["down"].shape[0] for one in state.own_layers(name).values()}
    found = dict(tensors)
    for path, module in names_in(state.model).items():
        rank = names.get(id(module))
        down, up = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        if rank is not None and down in found:
            found |= {down: found[down][:rank], up: found[up][:, :rank]}
    return found


def _with_base_layer(state: State, path: str) -> str:
    """PEFT's name of a base's tensor: an adapted layer's own tensors are those of its ``base_layer``."""
    module, _, last = path.rpartition(".")
    return f"{module}.base_layer.{last}" if module in state.paths() else path


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    ask = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    wanted = {id(one()) for one in ask if callable(one)}
    return {name: module for name, module in names_in(model).items() if id(module) in wanted}


def adapts_embeddings(model: nn.Module, name: str) -> bool:
    """Says whether an adapter changes the input or the output embedding of a model, single rows aside.

    Args:
        model: the base that carries it. name: the adapter.

    Raises:
        Wrong: the base carries no adapter of PEFT's kind.
    """
    state = state_of(model)
    if state.configs[name].word == "TRAINABLE_TOKENS":
        return False
    return not state.own_layers(name).keys().isdisjoint(_embeddings(model))
