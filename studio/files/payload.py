"""The hash of a file's tensors, made while they are read: so a file of the studio's says that it was changed."""

from __future__ import annotations

import hashlib
import threading
from queue import SimpleQueue
from typing import Final

__all__ = ["Payload"]

_LARGE: Final = 1 << 16  # bytes; fewer are hashed sooner than handed over


class Payload:
    """The SHA-256 of the bytes behind a header, compared with the one that the header states.

    Large tensors are hashed by a thread of their own, beside the reading.

    Example:
        >>> payload = Payload()
        >>> payload.expect(hashlib.sha256(b"bytes").hexdigest())
        >>> payload.add(memoryview(b"bytes"))
        >>> payload.agrees()
        True
    """

    def __init__(self) -> None:
        self.stated: str | None = None
        self._digest = hashlib.sha256()
        self._parts: SimpleQueue[memoryview | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def expect(self, stated: str | None) -> None:
        """Says what the hash should be, before anything is added; None: nobody said, and none is made."""
        self.stated = stated

    def add(self, part: memoryview) -> None:
        """Takes the next bytes ``(bytes,)`` of the file, which must stay as they are until :meth:`agrees`."""
        if self.stated is None:
            return
        if self._thread is None:
            if len(part) < _LARGE:
                self._digest.update(part)
                return
            self._thread = threading.Thread(target=self._run, name="studio-hash", daemon=True)
            self._thread.start()
        self._parts.put(part)

    def end(self) -> None:
        """Says that nothing more comes."""
        self._parts.put(None)

    def agrees(self) -> bool:
        """Says whether the bytes are those that the hash was stated of, once all are hashed."""
        if self._thread is not None:
            self.end()
            self._thread.join()
        return self.stated in (None, self._digest.hexdigest())

    def _run(self) -> None:
        while (part := self._parts.get()) is not None:
            self._digest.update(part)
