"""Which adapters act, are trained and how strongly: on a PEFT model, or on a base with adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec

from torch import nn

from studio.peft.model import activity, removing
from studio.peft.model.state import KEY, State, state_of
from studio.peft.model.tuner import base_of
from studio.peft.terms.errors import Wrong

__all__ = [
    "DoraCaching",
    "delete_adapter",
    "disable_input_dtype_casting",
    "rescale_adapter_scale",
    "set_adapter",
    "set_requires_grad",
]

P = ParamSpec("P")


def _on_model(verb: Callable[Concatenate[State, P], None]) -> Callable[Concatenate[nn.Module, P], None]:
    """Makes a verb on a state one on a PEFT model, or on a base with adapters."""

    @functools.wraps(verb)
    def act(model: nn.Module, *args: P.args, **kwargs: P.kwargs) -> None:
        verb(state_of(base_of(model)), *args, **kwargs)

    return act


set_adapter = _on_model(activity.set_adapter)
set_requires_grad = _on_model(activity.set_requires_grad)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str | None = None) -> list[str] | None:
    """Takes an adapter off, and returns those that act now.

    Args:
        model: a PEFT model, or a base with adapters. adapter_name: the adapter. prefix: accepted for PEFT's sake.

    Raises:
        Unknown: no adapter has that name. Wrong: the model carries none, or it is merged.
    """
    state = state_of(base_of(model))
    removing.delete_adapter(state, adapter_name)
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
    state = base_of(model).__dict__.get(KEY)
    if state is None or not state.paths():
        raise Wrong("scaling is only supported for models with `LoraLayer`s: no layer of this one carries an adapter")
    with activity.rescaled(state, float(multiplier)):
        yield


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Does nothing: inputs are never cast here, an adapter's tensors are brought to the dtype of what flows."""
    yield


class DoraCaching:
    """Does nothing: a DoRA layer keeps its norms in any case, for as long as neither the base nor the adapter changes.

    Args:
        enabled: accepted for PEFT's sake.

    Example:
        >>> with DoraCaching():
        ...     pass
        >>> DoraCaching()(enabled=False)
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        pass

    def __call__(self, enabled: bool = True) -> None:
        """Does nothing."""
