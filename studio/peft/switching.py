"""Which adapters act, are trained and how strongly: on a PEFT model, or on a base with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from studio.peft.model.activity import activate, require, rescaled
from studio.peft.model.removing import remove
from studio.peft.model.state import State, state_of
from studio.peft.model.tuner import base_of

__all__ = [
    "delete_adapter",
    "disable_input_dtype_casting",
    "rescale_adapter_scale",
    "set_adapter",
    "set_requires_grad",
]


def _state(model: nn.Module) -> State:
    return state_of(base_of(model))


def set_adapter(model: nn.Module, adapter_name: str | list[str], inference_mode: bool = False) -> None:
    """Sets the adapters that act on a model; they are trained and no other is.

    Args:
        model: a PEFT model, or a base with adapters. adapter_name: one or several. inference_mode: train none of them.

    Raises:
        Unknown: no adapter has that name. Wrong: the model carries none, or two of them cannot act together.
    """
    activate(_state(model), [adapter_name] if isinstance(adapter_name, str) else list(adapter_name), inference_mode)


def set_requires_grad(model: nn.Module, adapter_names: str | list[str], requires_grad: bool = True) -> None:
    """Sets whether adapters are trained, whether they act or not.

    Args:
        model: a PEFT model, or a base with adapters. adapter_names: one or several. requires_grad: trained or frozen.

    Raises:
        Unknown: no adapter has that name. Wrong: the model carries none.
    """
    require(_state(model), [adapter_names] if isinstance(adapter_names, str) else list(adapter_names), requires_grad)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str | None = None) -> list[str] | None:
    """Takes an adapter off, and returns those that act now.

    Args:
        model: a PEFT model, or a base with adapters. adapter_name: the adapter. prefix: accepted for PEFT's sake.

    Raises:
        Unknown: no adapter has that name. Wrong: the model carries none, or it is merged.
    """
    state = _state(model)
    remove(state, adapter_name)
    return state.active or None


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiplies the strength of every adapter while the context lasts.

    Args:
        model: a PEFT model, or a base with adapters. multiplier: any number.

    Raises:
        TypeError: the multiplier is no number. Wrong: the model carries no adapter.
    """
    if not isinstance(multiplier, (int, float)) or isinstance(multiplier, bool):
        raise TypeError(f"Argument multiplier should be of type float, got {type(multiplier)}")
    with rescaled(_state(model), float(multiplier)):
        yield


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Does nothing: inputs are never cast here, an adapter's tensors are brought to the dtype of what flows."""
    yield
