"""Several contexts in one row of words: each stands where it would stand alone.

Denoisers that turn queries and keys by their places would read a second context as the first one's continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from studio.families.conditioning import Conditioning

__all__ = ["moved_up", "places", "replaced"]

_ABSENT: Final = object()


def places(length: int, parts: int, device: Any = None) -> Tensor:
    """Returns the place of each token in its context, ``(length,)``, from 0 on.

    Args:
        length: of the row. parts: how many contexts of equal length it has. device: where to.

    Example:
        >>> places(6, 2).tolist()
        [0, 1, 2, 0, 1, 2]
    """
    return torch.arange(length, device=device) % (length // parts)


def moved_up(conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """Returns the words of each row that count, at its beginning, ``(B, L, D)``, and their mask ``(B, L)``."""
    assert conditioning.mask is not None, "a row is moved up by its mask"
    rows = [row[counts] for row, counts in zip(conditioning.tokens, conditioning.mask, strict=True)]
    counting = [row.new_ones(len(row), dtype=torch.bool) for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(counting, batch_first=True)


@contextmanager
def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, one of a module's own functions is another one; the module is as it was afterwards.

    Args:
        module: the module. name: of its function. function: is given that function, and what it is called with.
    """
    before, own = module.__dict__.get(name, _ABSENT), getattr(module, name)
    module.__dict__[name] = lambda *args, **kwargs: function(own, *args, **kwargs)
    try:
        yield
    finally:
        if before is _ABSENT:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before
