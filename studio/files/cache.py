"""What was read of adapter files, kept in memory: loading one again reads nothing, and what is used least goes first.

A file is known by where it really is, its inode, its size and the times of its last changes, so a file that was written
anew is read anew. What is kept are bytes that nobody else holds; who asks gets tensors of his own.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from studio.claims import DTYPES, TensorInfo
from studio.limits import limit

__all__ = ["CACHE", "Cache", "Kept", "Stamp", "now", "stamp_of"]

_LIMIT: Final = "cached-adapter-bytes"
_JUST_NOW: Final = 100_000_000  # nanoseconds in which a clock of a file system may not tell two changes apart
_COARSE: Final = 2_000_000_000  # the same where it keeps whole seconds


class Stamp(NamedTuple):
    """By what a file is known: where it really is, and which state of it."""

    place: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int


def stamp_of(file: Path) -> Stamp | None:
    """Returns the stamp of a file; None where it cannot be looked at.

    Args:
        file: the file; what links lead to counts.
    """
    try:
        found = file.stat()
        return Stamp(
            os.path.realpath(file), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Kept:
    """What a file held.

    Attributes:
        value: what was made of it and nobody changes, such as its header. data: the bytes behind the header.
    """

    value: Any
    data: bytes | bytearray = b""

    def tensors(self, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
        """Returns new tensors, as reading the file gives them.

        Args:
            infos: of the file's header, all of them.
        """
        held, made = memoryview(self.data), {}
        for name, info in infos.items():
            data = torch.empty(info.end - info.begin, dtype=torch.uint8, device="cpu")
            data.numpy().data[:] = held[info.begin : info.end]
            made[name] = data.view(DTYPES[info.dtype]).view(info.shape)
        return made


class Cache:
    """The least recently used of what was read, by bytes; threads may share it.

    Example:
        >>> cache, stamp = Cache(), Stamp("dog.safetensors", 0, 0, 3, 0, 0)
        >>> cache.put(stamp, "header", Kept("a dog", b"abc"), read_at=10**18)
        >>> cache.get(stamp, "header").value, cache.get(stamp._replace(modified=1), "header")
        ('a dog', None)
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Stamp, str], Kept] = OrderedDict()
        self._lock = threading.Lock()

    def takes(self, size: int) -> bool:
        """Says whether something of that many bytes is kept at all."""
        return size <= limit(_LIMIT)

    def get(self, stamp: Stamp | None, what: str) -> Kept | None:
        """Returns what is kept of a file in that state.

        Args:
            stamp: of the file as it is now. what: which thing of it.
        """
        with self._lock:
            if stamp is None or (stamp, what) not in self._held:
                return None
            self._held.move_to_end((stamp, what))
            return self._held[stamp, what]

    def put(self, stamp: Stamp | None, what: str, kept: Kept, *, read_at: int) -> None:
        """Keeps what was read of a file; other states of the file are forgotten, and what is over the limit.

        A file that was changed just before it was read is not kept: a second change might have left the same stamp.

        Args:
            stamp: of the file, the same before and after reading. what: which thing of it. kept: what was read.
            read_at: when reading began, in nanoseconds since 1970.
        """
        if stamp is None or read_at - max(stamp.modified, stamp.changed) < _doubtful(stamp):
            return
        with self._lock:
            for old, thing in [key for key in self._held if key[0].place == stamp.place and key[0] != stamp]:
                del self._held[old, thing]
            self._held.pop((stamp, what), None)
            self._held[stamp, what] = kept
            most = limit(_LIMIT)
            while self._held and self.bytes > most:
                self._held.popitem(last=False)

    @property
    def bytes(self) -> int:
        """How many bytes are kept, with a thousand for each thing."""
        return sum(len(kept.data) + 1_000 for kept in self._held.values())

    def forget(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._held.clear()


def _doubtful(stamp: Stamp) -> int:
    return _COARSE if stamp.modified % 1_000_000_000 == 0 else _JUST_NOW


def now() -> int:
    """Returns the time by which files are stamped, in nanoseconds since 1970."""
    return time.time_ns()


CACHE: Final = Cache()
"""What this process has read."""
