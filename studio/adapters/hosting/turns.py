"""Turns: those who share a model use it one after the other, each with its own blend.

The modules of a model and the blend that acts in them are shared by all threads. So a context in which a blend holds
(``blended``, a picture being drawn) is a *turn*: another thread waits for its end. A task of the same thread cannot
wait, and neither can who holds a turn already, so they are refused; and so is a call from outside of a turn that others
hold. Nobody ever computes with somebody else's blend.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.levels import Levels
from studio.errors import DoesNotFit
from studio.families import components

__all__ = ["BlendContext", "check_turn", "in_turn", "turn"]

P = ParamSpec("P")
R = TypeVar("R")

_GUARD: Final = threading.Lock()
_LOCKS: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
_OPEN: Final[WeakKeyDictionary[Levels, list[BlendContext]]] = WeakKeyDictionary()
_INSIDE: Final[ContextVar[tuple[object, ...]]] = ContextVar("studio_inside", default=())


class BlendContext:
    """A blend that holds while a context lasts, on the levels of one model.

    Args:
        levels: those of all its components.

    Raises:
        DoesNotFit: another task of this thread is inside a context of its own on the same model.
    """

    def __init__(self, levels: Iterable[Levels]) -> None:
        self.before: dict[Levels, Mapping[str, Strength]] = {}
        for one in levels:
            check_turn(one)
            self.before[one] = dict(one.strengths)
        for one in self.before:
            _OPEN.setdefault(one, []).append(self)
        _INSIDE.set((*_INSIDE.get(), self))

    def leave(self) -> dict[Levels, Mapping[str, Strength]]:
        """Ends the context, and returns the blends that hold from now on.

        Raises:
            DoesNotFit: a context that was entered later is still open; that one then gives the former blend back.
        """
        _INSIDE.set(tuple(one for one in _INSIDE.get() if one is not self))
        restored, crossed = {}, False
        for one, strengths in self.before.items():
            stack = _OPEN[one]
            place = stack.index(self)
            if place == len(stack) - 1:
                restored[one] = strengths
            else:
                stack[place + 1].before[one], crossed = strengths, True
            stack.remove(self)
        if crossed:
            raise DoesNotFit(
                "two blended(...) contexts on one model cross: the first ended while the second was open; end them in "
                "the opposite order of their beginning"
            )
        return restored


def check_turn(levels: Levels) -> None:
    """Checks that no one else is inside a context on these levels.

    Raises:
        DoesNotFit: another thread or task is.
    """
    stack = _OPEN.get(levels)
    if stack and stack[-1] not in _INSIDE.get():
        raise DoesNotFit(
            "another thread or task is inside blended(...) on this model, and its blend would act here: do this inside "
            "a blended(...) of its own in a thread, which waits for its turn, or after the other has ended"
        )


@contextmanager
def turn(model: Any) -> Iterator[None]:
    """Lasts as long as this thread alone may use a model; others wait at their own ``turn``.

    Args:
        model: a module, or a pipeline: all its modules.

    Raises:
        DoesNotFit: another thread has the turn, and this one holds a turn already, so that both could wait for ever.
    """
    with _GUARD:
        locks = [_LOCKS.setdefault(one, threading.RLock()) for one in components(model).values()]
    while (busy := _taken(locks)) is not None:
        if _INSIDE.get():
            raise DoesNotFit(
                "another thread uses a part of this model, and this one is inside blended(...) already, so that each "
                "could wait for the other for ever; enter one blended(...) for the whole pipeline"
            )
        with busy:
            pass
    marker = object()
    _INSIDE.set((*_INSIDE.get(), marker))
    try:
        yield
    finally:
        _INSIDE.set(tuple(one for one in _INSIDE.get() if one is not marker))
        for lock in locks:
            lock.release()


def in_turn(verb: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a verb, whose first argument is a model or pipeline, take its turn."""

    @functools.wraps(verb)
    def taking(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with turn(model):
            return verb(model, *args, **kwargs)

    return taking


def _taken(locks: list[Any]) -> Any:
    """Takes all of the locks, or none and returns one that is busy."""
    for index, lock in enumerate(locks):
        if not lock.acquire(blocking=False):
            for other in locks[:index]:
                other.release()
            return lock
    return None
