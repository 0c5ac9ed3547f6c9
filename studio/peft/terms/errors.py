"""PEFT's warnings and errors, and how the studio's errors look to a script written for PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from studio.errors import BadConfig, NoTargets, StudioError, UnknownName

__all__ = ["NoMatchingPeftModuleError", "PeftError", "PeftWarning", "Wrong", "refusals"]


class PeftWarning(UserWarning):
    """A warning of this package."""


class PeftError(Exception):
    """PEFT's own base of errors."""


class Wrong(BadConfig, ValueError):
    """A request that cannot be met; a ``ValueError`` too, which is what PEFT raises."""


class NoMatchingPeftModuleError(NoTargets, PeftError, ValueError):
    """A target that matches no layer."""


class Unknown(UnknownName, KeyError, ValueError):
    """A name that no adapter has."""

    def __str__(self) -> str:  # KeyError shows the representation of its argument
        return Exception.__str__(self)


_MADE: Final[dict[type[StudioError], type[StudioError]]] = {}


def _as_value_error(kind: type[StudioError]) -> type[StudioError]:
    """The same error that is a ``ValueError`` too."""
    if issubclass(kind, NoTargets):
        return NoMatchingPeftModuleError
    if issubclass(kind, UnknownName):
        return Unknown
    if kind is BadConfig:
        return Wrong
    if kind not in _MADE:
        _MADE[kind] = type(kind.__name__, (kind, ValueError), {"__module__": kind.__module__})
    return _MADE[kind]


@contextmanager
def refusals() -> Iterator[None]:
    """Makes the studio's errors ``ValueError``s as well: scripts written for PEFT catch those."""
    try:
        yield
    except StudioError as error:
        if isinstance(error, ValueError):
            raise
        raise _as_value_error(type(error))(str(error)) from error
