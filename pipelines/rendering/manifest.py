"""What happened to the jobs of a folder, one line of JSON for every attempt: ``manifest.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from studio.atomic import sentences

__all__ = ["Manifest"]


class Manifest:
    """The manifest of a folder; any number of processes may add to it.

    Args:
        file: where it is. lock: the file that whoever adds holds meanwhile.
    """

    def __init__(self, file: Path, lock: Path) -> None:
        self.file = file
        self._lock = FileLock(lock)

    def add(self, **entry: Any) -> None:
        """Adds a line, all of it or nothing; what a killed process left of its last line ends before it.

        Args:
            entry: what it says; the time is put behind it, and what is None is left out.

        Raises:
            BadFile: it cannot be written.
        """
        said = {name: value for name, value in entry.items() if value is not None}
        said["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = (json.dumps(said, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        with sentences(self.file), self._lock, self.file.open("a+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 1, 0))
            torn = stream.read(1) not in (b"", b"\n")
            try:
                _write(stream.fileno(), b"\n" + line if torn else line)
            except OSError:
                stream.truncate(size)
                raise

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yields its lines; one that cannot be read, because its writer died over it, is passed over."""
        if not self.file.exists():
            return
        with self.file.open("rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    yield entry


def _write(descriptor: int, data: bytes) -> None:
    """Writes all of it; a disk that is nearly full takes a part, and refuses the rest."""
    while data:
        data = data[os.write(descriptor, data) :]
