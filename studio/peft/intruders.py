"""``reduce_intruder_dimension``: a LoRA's directions that the base does not have, made weaker in a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, install
from studio.peft.files.tensors import PREFIX
from studio.peft.model.activity import set_adapter
from studio.peft.model.adding import put
from studio.peft.model.merging import fold_again, take_out
from studio.peft.model.state import State, state_of
from studio.peft.model.tuner import base_of
from studio.peft.terms.errors import Wrong, refusals

__all__ = ["reduce_intruder_dimension"]


def reduce_intruder_dimension(
    peft_model: nn.Module,
    old_adapter_name: str = "default",
    new_adapter_name: str = "intruder_reduced",
    top_k: int = 10,
    threshold_epsilon: float = 0.5,
    mitigation_lambda: float = 0.75,
    logging_sink: Callable[[str], Any] | None = print,
) -> None:
    """Adds a copy of a LoRA in which intruders are weaker, and lets it act; less of what the base knew is forgotten.

    An intruder is one of the first singular vectors of ``W + ΔW`` that is like none of ``W``'s; its singular value is
    multiplied by ``mitigation_lambda``, and the pair that comes nearest to what is left is the new adapter.

    Args:
        peft_model: a PEFT model. old_adapter_name: a LoRA on it. new_adapter_name: what the new one is called.
        top_k: how many singular vectors are looked at. threshold_epsilon: an intruder's cosine with every vector of the
            base is below it. mitigation_lambda: what is left of an intruder. logging_sink: is told of each layer.

    Raises:
        Wrong: another method, or a LoRA that is more than pairs (DoRA, biases). Unknown: no adapter has that name.

    References:
        | LoRA vs Full Fine-tuning: An Illusion of Equivalence (Shuttleworth et al., 2024),
          https://arxiv.org/abs/2410.21228
    """
    say = logging_sink or (lambda line: None)
    state = state_of(base_of(peft_model))
    with refusals():
        state.check(old_adapter_name)
        config = state.configs[old_adapter_name]
        layers = state.own_layers(old_adapter_name)
        for path, adapter in layers.items():
            if set(adapter.tensors()) != {"down", "up"}:
                raise Wrong(
                    "The provided model is not using LoRA and is therefore not supported. It is for pairs alone; "
                    f"{old_adapter_name!r} has {', '.join(sorted(adapter.tensors()))} at {path}"
                )
        take_out(state)
        try:
            made = {path: _lessened(one, path, top_k, threshold_epsilon, mitigation_lambda, say)
                    for path, one in layers.items()}  # fmt: skip
        finally:
            fold_again(state)
        ours = next(iter(layers.values())).config
        place = partial(install, state.model, ours, made, name=new_adapter_name)
        put(state, new_adapter_name, copy.deepcopy(config), place, active=False)
        _copy_beside(state, old_adapter_name, new_adapter_name)
        say(f"Enabling new adapter {new_adapter_name}")
        set_adapter(state, new_adapter_name)


@torch.no_grad()
def _lessened(
    adapter: Adapter, path: str, most: int, least: float, left: float, say: Callable[[str], Any]
) -> dict[str, Tensor]:
    """A layer's pair with weaker intruders, or the pair itself where there are none."""
    site, factors = adapter.site, adapter.factors()
    turned = site.kind == "embedding"  # PEFT's matrix of an embedding has the tokens as its rows
    weight, change = site.matrix(site.weight.float()), (factors.up.float() @ factors.down.float().flatten(1))
    scaled = change * factors.scale
    weight, whole = (one.T if turned else one for one in (weight, weight + scaled))
    own, _, _ = torch.linalg.svd(weight, full_matrices=False)
    left_vectors, values, right_vectors = torch.linalg.svd(whole, full_matrices=False)
    likeness = (left_vectors.T @ own).abs().amax(dim=1)
    intruders = (likeness[:most] < least).nonzero().flatten()
    name = PREFIX + path
    if not len(intruders):
        say(f"{name}: No intruders")
        return {key: tensor.detach().clone() for key, tensor in adapter.tensors().items()}
    say(f"{name}: Intruders: {len(intruders)}")
    strange = (left_vectors[:, intruders] * values[intruders]) @ right_vectors[intruders]
    wanted = (whole + (left - 1) * strange - weight) / factors.scale
    u, s, vh = torch.linalg.svd(wanted.T if turned else wanted, full_matrices=False)
    rank, root = factors.down.shape[0], s.sqrt()
    up, down = u[:, :rank] * root[:rank], root[:rank, None] * vh[:rank]
    return {"down": down.reshape(factors.down.shape).to(factors.down), "up": up.to(factors.up)}


@torch.no_grad()
def _copy_beside(state: State, old: str, new: str) -> None:
    """Gives the new adapter what the old one has beside its layers: copies of modules, and rows of tokens."""
    for path, module in state.extras[old].modules.items():
        state.extras[new].modules[path].load_state_dict(module.state_dict())
    rows = state.token_layers(new)
    for path, adapter in state.token_layers(old).items():
        for key, tensor in adapter.tensors().items():
            rows[path].tensors()[key].copy_(tensor)
    dtypes = {path: adapter.tensors()["down"].dtype for path, adapter in state.own_layers(old).items()}
    for path, adapter in state.own_layers(new).items():
        adapter.to(dtypes[path])
