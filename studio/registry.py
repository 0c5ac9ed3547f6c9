"""A registry: names to things, refusing taken names and naming the nearest right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from studio.errors import UnknownName, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to entries of one sort.

    It iterates in sorted order, so that tests and tables that run over it are stable.

    Args:
        what: the sort in words, for messages ("method", "file format").

    Raises:
        UnknownName: by ``registry[name]``, with the nearest names.

    Example:
        >>> colours = Registry("colour")
        >>> _ = colours.add("red", (255, 0, 0))
        >>> list(colours)
        ['red']
        >>> colours["rad"]
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no colour is named 'rad'; did you mean 'red'? (known: red)
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}
        self._names: tuple[str, ...] = ()

    def add(self, name: str, entry: T) -> T:
        """Registers ``entry`` under ``name`` and returns it.

        Raises:
            ValueError: a taken name, which is a mistake in the program.
        """
        if name in self._entries:
            raise ValueError(f"the {self.what} {name!r} is registered already")
        self._entries[name] = entry
        self._names = tuple(sorted(self._entries))
        return entry

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all entries, sorted; the same object until another one is added."""
        return self._names

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers what it decorates under ``name``."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            close = nearest(str(name), self._entries, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownName(f"no {self.what} is named {name!r}{hint} (known: {', '.join(self)})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._entries)
