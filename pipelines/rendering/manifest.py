"""What happened to the jobs of a folder, one line of JSON for every attempt: ``manifest.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from studio.atomic import sentences

__all__ = ["Manifest"]


MADE: Final = ("done", "copied", "found")
"""Outcomes after which there is a picture."""


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
        with sentences(self.file), self._lock:
            self._append([entry])

    def found(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Adds pictures that are there and of which it says nothing: who drew them died before that.

        Args:
            entries: what it would say of each, with its ``file`` and ``job``.

        Raises:
            BadFile: it cannot be written.
        """
        with sentences(self.file), self._lock:
            known = {(line.get("file"), line.get("job")) for line in self if line.get("outcome") in MADE}
            lost = [entry for entry in entries if (entry["file"], entry["job"]) not in known]
            self._append([{**entry, "outcome": "found"} for entry in lost])

    def pictures(self) -> dict[str, list[str]]:
        """Returns job -> the files in which its picture was, the last one first."""
        found: dict[str, list[str]] = {}
        for line in self:
            if line.get("outcome") in MADE:
                found.setdefault(str(line.get("job")), []).insert(0, str(line.get("file")))
        return found

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        said = [{**{name: one for name, one in entry.items() if one is not None}, "time": now} for entry in entries]
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in said)
        with self.file.open("a+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 1, 0))
            torn = stream.read(1) not in (b"", b"\n")
            try:
                _write(stream.fileno(), ("\n" * torn + text).encode(errors="backslashreplace"))
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
