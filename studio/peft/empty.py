"""``init_empty_weights``: modules that are made without memory for their parameters, on torch's meta device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, ParamSpec, TypeVar

import torch
from torch import nn

__all__ = ["init_empty_weights", "skip_init_on_device"]

P = ParamSpec("P")
R = TypeVar("R")

_SKIPPED: Final[ContextVar[bool]] = ContextVar("skip_init_on_device", default=False)


@contextmanager
def init_empty_weights(include_buffers: bool | None = None) -> Iterator[None]:
    """Makes every parameter that modules register while the context lasts an empty one, on the meta device.

    Args:
        include_buffers: buffers too.

    Example:
        >>> with init_empty_weights():
        ...     layer = nn.Linear(3, 3)
        >>> layer.weight.device
        device(type='meta')
    """
    register, register_buffer = nn.Module.register_parameter, nn.Module.register_buffer

    def emptied(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None and not _SKIPPED.get():
            held: Any = param
            made = type(held)(held.to("meta"), **{**held.__dict__, "requires_grad": held.requires_grad})
            self._parameters[name] = made

    def emptied_buffer(self: nn.Module, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        register_buffer(self, name, tensor, persistent)
        if tensor is not None and not _SKIPPED.get():
            self._buffers[name] = tensor.to("meta")

    nn.Module.register_parameter = emptied  # type: ignore[method-assign]
    if include_buffers:
        nn.Module.register_buffer = emptied_buffer  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        nn.Module.register_buffer = register_buffer  # type: ignore[method-assign]


def skip_init_on_device(func: Callable[P, R]) -> Callable[P, R]:
    """Makes a function's own modules real ones, inside :func:`init_empty_weights` too."""

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _SKIPPED.set(True)
        try:
            return func(*args, **kwargs)
        finally:
            _SKIPPED.reset(token)

    return wrapper
