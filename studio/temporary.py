"""Temporary files and folders beside what they are to become, and what is left of them when their writer was killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["beside", "held", "locked", "remove", "remove_dead", "remove_leftovers"]

_TEMPORARY: Final = re.compile(r"\..{1,100}\.[0-9a-f]{8}\.tmp", re.DOTALL)
TAIL: Final = 12  # characters of ``0123abcd.tmp``


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that killed writers left in a folder (not in those below it).

    Args:
        folder: held by the caller, so that no living writer has a temporary file in it; it need not be there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".dog.png.0123abcd.tmp").touch(), (folder / ".mine.tmp").touch()
        (None, None)
        >>> remove_leftovers(folder)
        >>> [file.name for file in folder.iterdir()]
        ['.mine.tmp']
    """
    folder = Path(folder)
    for file in list(folder.iterdir()) if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(file.name):
            remove(file)


def remove(file: Path) -> None:
    """Removes a file or a folder, if it is there; where that cannot be done it stays, and does no harm.

    Args:
        file: what goes; of a link, the link.
    """
    with contextlib.suppress(OSError):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def held(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Makes a temporary file or folder beside ``target`` for a while, locked as long as this process lives.

    Args:
        target: what it is to become, if it is renamed meanwhile.
        make: makes it under the name that it is given.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        temporary = beside(target)
        try:
            make(temporary)
            with locked(temporary) as descriptor:
                # else another writer of the same file has taken it for a dead one's, before it was locked
                if descriptor is None or _is_at(descriptor, temporary):
                    yield temporary
                    return
        finally:
            remove(temporary)


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[int | None]:
    """Holds the system's lock on a file or folder, which a process loses when it ends, however that happens.

    Args:
        file: what is locked, under whatever name it has later.
        wait: until nobody else holds it.

    Yields:
        A descriptor; None where the system has no such locks, or somebody else holds it.
    """
    with contextlib.ExitStack() as stack:
        held_by_us = None
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                held_by_us = descriptor
        yield held_by_us


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except OSError:
        return False


def remove_dead(target: Path) -> None:
    """Removes what killed writers of ``target`` left beside it; what a living one writes is locked.

    Args:
        target: a file or folder that is whole, so that nothing else of it is needed.
    """
    start = beside(target).name[:-TAIL]
    with contextlib.suppress(OSError):
        for file in [file for file in target.parent.iterdir() if file.name.startswith(start)]:
            if len(file.name) == len(start) + TAIL and _TEMPORARY.fullmatch(file.name):
                with locked(file, wait=False) as descriptor:
                    if descriptor is not None:
                        remove(file)


def beside(file: Path) -> Path:
    """Returns a name for a temporary file in the same folder, as long as any name may be there.

    Args:
        file: what it is to become.
    """
    start = os.fsencode(file.name)[:100].decode(errors="ignore")  # a name has so many bytes at most, not characters
    return file.with_name(f".{start}.{secrets.token_hex(4)}.tmp")
