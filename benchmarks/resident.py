"""What a process holds: its peak as the system counts it, and how much of it was its own at most."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

__all__ = ["Resident", "status"]

_STATUS = Path("/proc/self/status")


def status() -> dict[str, int]:
    """Bytes that this process holds (Linux): ``VmRSS`` of all, ``VmHWM`` its peak, ``RssAnon`` its own, ``RssFile``."""
    lines = (line.split() for line in _STATUS.read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


class Resident:
    """Watches this process while it lasts.

    ``VmHWM`` is of this program alone (the system's ``ru_maxrss`` begins with what the process that started it held).
    A training starts it anew when it has opened its base, so it is looked at every 20 milliseconds; so are its parts,
    of which the system keeps no peak.

    Attributes:
        own: memory that is no file's at most (``RssAnon``), in bytes.
        files: mapped files at most (``RssFile``).

    Example:
        >>> with Resident() as resident:
        ...     held = bytes(1 << 20)
        >>> resident.peak >= resident.own > 0
        True
    """

    def __init__(self) -> None:
        self.own = self.files = self._high = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Resident:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """All that the process held at most (``VmHWM``), in bytes."""
        return max(self._high, status()["VmHWM"])

    def _watch(self) -> None:
        while True:
            now = status()
            self.own, self.files = max(self.own, now["RssAnon"]), max(self.files, now["RssFile"])
            self._high = max(self._high, now["VmHWM"])
            if self._over.wait(0.02):
                return
