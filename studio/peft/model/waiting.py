"""Adapters that wait on the meta device, without memory, for the tensors of a file (``low_cpu_mem_usage``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter
from studio.peft.model.state import State
from studio.peft.terms.errors import Wrong

__all__ = ["arrive", "send_away", "waiting"]


def send_away(state: State, name: str) -> None:
    """Puts what an adapter trains on the meta device; the model is not to be called until all of it has arrived.

    Args:
        state: what is on the model. name: the adapter.
    """
    for _, adapter in state.layers(name):
        for key, tensor in adapter._parameters.items():
            if tensor is not None:
                empty = torch.empty_like(tensor, device="meta")
                adapter._parameters[key] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    state.assembly.levels.touch()

    def refuse(module: nn.Module, args: Any) -> None:
        if waiting(state, name):  # torch would compute with memory that is not there
            raise Wrong(
                f"the adapter {name!r} was made with low_cpu_mem_usage=True and waits for its tensors: load them with "
                "set_peft_model_state_dict or load_adapter first"
            )
        hook.remove()

    hook = state.model.register_forward_pre_hook(refuse)


def waiting(state: State, name: str) -> dict[int, tuple[Adapter, str]]:
    """Returns the tensors of an adapter that wait: the ``id`` of each -> its layer's adapter and its name there.

    Args:
        state: what is on the model. name: the adapter.
    """
    layers = (adapter for _, adapter in state.layers(name))
    return {id(one): (adapter, key) for adapter in layers for key, one in adapter.tensors().items() if one.is_meta}


def arrive(adapter: Adapter, key: str, tensor: Tensor) -> None:
    """Puts values in the place of a tensor that waits, where the layer is.

    Args:
        adapter: of one layer. key: the tensor's name. tensor: its values ``(...)``.
    """
    empty = adapter._parameters[key]
    assert empty is not None, "nothing else was sent away"
    made = tensor.detach().to(adapter.site.weight.device, empty.dtype, copy=True)
    adapter._parameters[key] = nn.Parameter(made, requires_grad=empty.requires_grad)
