"""Who draws which job, where several processes share a list: locks of the system, which nobody holds who has died."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studio.atomic import atomic_write, sentences
from studio.errors import DoesNotFit
from studio.temporary import remove, remove_leftovers

__all__ = ["Claims", "joined"]


class Claims:
    """The jobs that this process has claimed.

    Args:
        folder: where the locks are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, Any] = {}

    def take(self, job: str) -> bool:
        """Claims a job; whoever claims it looks whether it is done before he does it.

        Args:
            job: what tells it from the others.

        Returns:
            Whether it is ours now; another process may be at it.

        Raises:
            BadFile: the lock cannot be made.
        """
        lock = _try(self._file(job))
        if lock is None:
            return False
        self._held[job] = lock
        return True

    def give(self, job: str, *, done: bool) -> None:
        """Gives a job back; the lock of one that is done goes.

        Args:
            job: a job that was taken. done: whether its picture is there.
        """
        lock = self._held.pop(job)
        if done:  # whoever holds another lock under the name by now finds the picture
            remove(self._file(job))
        lock.release()

    def give_all(self) -> None:
        """Gives all back that are held."""
        for job in list(self._held):
            self.give(job, done=False)

    def _file(self, job: str) -> Path:
        return self.folder / f"{hashlib.sha256(job.encode()).hexdigest()[:32]}.lock"


@contextlib.contextmanager
def joined(folder: Path, pictures: Path, digest: str) -> Iterator[Claims]:
    """Takes part in the rendering of a list into a folder while the context lasts.

    Args:
        folder: where the locks are. pictures: the folder of the pictures.
        digest: of the list; all that take part at a time have the same.

    Raises:
        DoesNotFit: another list is being rendered into the folder.
        BadFile: nothing can be written there.
    """
    door = FileLock(folder / "door.lock")
    sessions = folder / "sessions"
    with sentences(folder / "sessions"):
        sessions.mkdir(parents=True, exist_ok=True)
        (folder / "claims").mkdir(exist_ok=True)
        with door:
            others = _living(sessions)
            for other in others:
                _check_same(other, digest, pictures)
            if not others:
                for place in (pictures, folder):
                    remove_leftovers(place)
                for place in folder.glob("held.*"):
                    remove(place)
            mine = sessions / f"{secrets.token_hex(8)}.lock"
            lock = _try(mine)
            atomic_write(mine.with_suffix(".json"), json.dumps({"list": digest, "pid": os.getpid()}))
    claims = Claims(folder / "claims")
    try:
        yield claims
    finally:
        claims.give_all()
        with door:
            remove(mine.with_suffix(".json"))
            remove(mine)
            if lock is not None:
                lock.release()
            if not _living(sessions):
                remove(folder / "claims")


def _living(sessions: Path) -> list[Path]:
    """The locks of those that take part; those of the dead are removed."""
    alive = []
    for file in sorted(sessions.glob("*.lock")):
        lock = _try(file)
        if lock is None:
            alive.append(file)
            continue
        remove(file)
        remove(file.with_suffix(".json"))
        lock.release()
    return alive


def _check_same(other: Path, digest: str, pictures: Path) -> None:
    try:
        said = json.loads(other.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is just leaving
        return
    if said.get("list") != digest:
        raise DoesNotFit(
            f"another list, or the same with other settings, is being rendered into {pictures} (process "
            f"{said.get('pid')}): wait for it, stop it, or choose another folder"
        )


def _try(file: Path) -> Any:
    """Returns the lock of a file, held; None where another process holds it."""
    lock = FileLock(file)
    try:
        with sentences(file):
            lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock
