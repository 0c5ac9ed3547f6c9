"""Modules without weights: what computes shapes, types and sizes alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from studio.planning.known import KnownMode
from studio.planning.tracker import Tracker

__all__ = ["Fakes"]

_QUESTION: Final = "is_fake_tensor"

DEVICE: Final = torch.device("cpu")
"""What fake tensors say that they are on. It is the one device that every build of torch has; only sizes are asked."""


@contextmanager
def _as_if_real() -> Iterator[None]:
    """While it lasts, transformers computes as on tensors with numbers.

    For fakes it builds masks that it else leaves out. Its question is answered anew for a while, and given back.
    """
    module = sys.modules.get("transformers.utils.import_utils")
    names = vars(module) if module is not None else {}
    log, before = logging.getLogger("torch._subclasses.fake_tensor"), names.get(_QUESTION)
    talks, log.disabled = log.disabled, True  # it prints a traceback of what is caught and said in a sentence
    if before is not None:
        names[_QUESTION] = lambda tensor: False
    try:
        yield
    finally:
        log.disabled = talks
        if before is not None:
            names[_QUESTION] = before


class Fakes:
    """Makes fake tensors, which are of one mode.

    Example:
        >>> fakes = Fakes()
        >>> layer = nn.Linear(4096, 4096, device="meta", dtype=torch.bfloat16)
        >>> fakes.fill(layer)
        >>> with fakes.entered():
        ...     layer(fakes.tensor((1, 4096), torch.bfloat16)).shape
        torch.Size([1, 4096])
    """

    def __init__(self) -> None:
        self.mode = KnownMode()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns a fake tensor."""
        meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
        with self.mode:
            return FakeTensor(self.mode, meta, DEVICE)

    def fill(self, module: nn.Module) -> None:
        """Puts fake tensors in the place of a module's parameters and buffers, each in its place and once.

        Args:
            module: a module on the meta device, or with real tensors, which are then let go.
        """
        made: dict[int, Tensor] = {}
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        table[name] = made.setdefault(id(tensor), self._like(tensor))  # type: ignore[assignment]
            for name, value in vars(part).items():  # tables that a module keeps beside its buffers
                if isinstance(value, Tensor) or (
                    isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)
                ):
                    setattr(part, name, tree_map_only(Tensor, self._like, value))

    def _like(self, tensor: Tensor) -> Tensor:
        fake = self.tensor(tensor.shape, tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake

    @contextmanager
    def entered(self, tracker: Tracker | None = None) -> Iterator[None]:
        """While it lasts, whatever is computed is computed on fake tensors.

        Args:
            tracker: counts what is made.
        """
        before, self.mode.watch = self.mode.watch, tracker.saw if tracker is not None else None
        try:
            with self.mode, _as_if_real():
                yield
        finally:
            self.mode.watch = before
