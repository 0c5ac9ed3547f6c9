"""Moments in the life of a process at which something happens to it: a call of its own, or of the system."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

__all__ = ["Call", "File", "Moment"]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Call:
    """Just before the nth call of a function of the studio, or of what it uses.

    Args:
        place: ``"module:name"`` or ``"module:Class.name"``. number: 1 is the first call.
    """

    place: str
    number: int = 1

    def await_it(self, action: Callable[[], None]) -> None:
        """Lets ``action`` happen then, in this process."""
        module, _, name = self.place.partition(":")
        holder: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            holder = getattr(holder, part)
        whole, count = getattr(holder, last), 0

        def called(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == self.number:
                action()
            return whole(*given, **named)

        setattr(holder, last, called)

    def __str__(self) -> str:
        return f"{self.place.rpartition(':')[2]} {self.number}"


@dataclass(frozen=True)
class File:
    """Just before the system opens a file to write it, renames to it, removes it, or makes a folder.

    Args:
        event: ``"open"``, ``"os.rename"``, ``"os.remove"``, ``"os.mkdir"``.
        pattern: of the path; temporary files have the name of theirs, with a dot before it and more behind it.
        number: 1 is the first.
    """

    event: str
    pattern: str
    number: int = 1

    def await_it(self, action: Callable[[], None]) -> None:
        """Lets ``action`` happen then, in this process, which is told of all later ones too."""
        count = 0

        def told(event: str, given: tuple[Any, ...]) -> None:
            nonlocal count
            if event != self.event or (event == "open" and not (isinstance(given[2], int) and given[2] & WRITES)):
                return
            path = given[1 if event == "os.rename" else 0]
            if isinstance(path, (str, bytes, os.PathLike)) and fnmatch(os.fsdecode(path), self.pattern):
                count += 1
                if count == self.number:
                    action()

        sys.addaudithook(told)

    def __str__(self) -> str:
        return f"{self.event} {self.pattern} {self.number}"


Moment = Call | File
