"""The arguments of a PEFT model's ``forward``: those of its base, which libraries ask the class for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

from torch import nn

__all__ = ["showing"]

M = TypeVar("M", bound=nn.Module)

_MADE: Final[dict[tuple[type, type], type]] = {}


def showing(kind: type[M], base: nn.Module) -> type[M]:
    """Returns a PEFT model's class whose ``forward`` shows the base's arguments and ``adapter_names``.

    transformers' ``Trainer`` reads there which columns of a data set a model takes, and which of them are labels.

    Args:
        kind: the class of the PEFT model. base: what it stands around.
    """
    of = type(base)
    if (kind, of) not in _MADE:
        shown = _signature(base)
        if shown is None:
            return kind

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return cast(Any, kind).forward(self, *args, **kwargs)

        def reduce_ex(self: Any, protocol: int) -> Any:  # copies and pickles begin as the class that has a name
            return (_bare, (kind,), *cast(Any, kind.__reduce_ex__(self, protocol))[2:])

        cast(Any, forward).__signature__ = shown
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _MADE[kind, of] = type(kind.__name__, (kind,), {**names, "forward": forward, "__reduce_ex__": reduce_ex})
    return _MADE[kind, of]


def _signature(base: nn.Module) -> inspect.Signature | None:
    """What a call of the base takes, as a method's signature, or None where it cannot be told."""
    try:
        own = inspect.signature(base.forward)
    except (TypeError, ValueError):
        return None
    names = inspect.Parameter("adapter_names", inspect.Parameter.KEYWORD_ONLY, default=None,
                              annotation=Sequence[str] | None)  # fmt: skip
    given = [one for name, one in own.parameters.items() if name not in ("self", names.name)]
    rest = [one for one in given if one.kind is inspect.Parameter.VAR_KEYWORD]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    if any(one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in given):
        first = first.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    before = [one for one in given if one not in rest]
    return own.replace(parameters=[first, *before, names, *rest])


def _bare(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)
