"""A lock that names a live process: whoever died, by whatever signal, holds nothing.

On this host the process itself is looked for. Of a holder on another host (a shared folder, or a container, which has a
new host name at each start) only its heartbeat is seen: while it lives, it touches the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from studio.errors import BadFile, DoesNotFit
from studio.trainers.loop.process import started

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["locked"]

BEAT: Final = 10.0  # seconds between two signs of life
EXPIRES: Final = 90.0  # seconds without one, after which a holder on another host is taken for gone
BEGINS: Final = '{"pid"'  # what our text begins with; its writer may have died over it
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the lock ``file`` while the context lasts.

    The file names the holder by process id and start time, so that neither a killed process nor a later one with the
    same id counts as the holder.

    Raises:
        DoesNotFit: a live process holds it.
        BadFile: what stands there is no lock of the studio, or nothing can be written there.
    """
    pid = os.getpid()
    mine = {"pid": pid, "started": started(pid), "host": platform.node(), "token": secrets.token_hex(8), "beat": BEAT}
    _take(file, mine)
    rest = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, rest), name="studio-lock", daemon=True)
    heart.start()
    try:
        yield
    finally:
        try:
            rest.set()
            heart.join()
        finally:
            _leave(file, mine)


def _beat(file: Path, rest: threading.Event) -> None:
    while not rest.wait(BEAT):
        with contextlib.suppress(OSError):  # the run goes on without its sign of life
            os.utime(file)


def _take(file: Path, mine: dict[str, Any]) -> None:
    with _alone(file) as descriptor:
        holder = _read(descriptor, file)
        if holder:
            _check_gone(file, descriptor, holder)
        try:
            _write(descriptor, json.dumps(mine))
        except BaseException:
            _remove(file)
            raise


def _check_gone(file: Path, descriptor: int, holder: dict[str, Any]) -> None:
    """Checks that who holds the lock is dead.

    Raises:
        DoesNotFit: it lives, as far as can be seen.
    """
    going = f"the run in {file.parent} is still going on (process {holder['pid']} on {holder['host']}"
    what = "wait for it, stop it, or choose another output folder"
    if holder["host"] == platform.node():
        if holder["started"] is not None and started(holder["pid"]) == holder["started"]:
            raise DoesNotFit(f"{going}): {what}")
        return
    if "beat" not in holder:  # written by an earlier version
        raise DoesNotFit(f"{going}): {what}; if that host is gone, remove {file}")
    silent = _now(file) - os.fstat(descriptor).st_mtime
    if silent < EXPIRES:
        left = EXPIRES - silent
        raise DoesNotFit(
            f"{going}, last sign of life {max(silent, 0):.0f} s ago): {what}; if that host is gone, its hold ends in "
            f"{left:.0f} s"
        )


def _now(file: Path) -> float:
    """The time by the clock that stamps files in that folder, which on a shared one is not ours."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".clock.") as fresh:
        return os.fstat(fresh.fileno()).st_mtime


def _leave(file: Path, mine: dict[str, Any]) -> None:
    # somebody put something else there, or nothing can be written any more: it stays, and the process is gone soon
    with contextlib.suppress(BadFile, OSError), _alone(file, os.O_RDONLY) as descriptor:
        if _read(descriptor, file).get("token") == mine["token"]:
            _remove(file)


def _remove(file: Path) -> None:
    try:
        file.unlink()
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(file, 0)  # nobody's, where an open file cannot be removed
    except BaseException:  # Ctrl-C at this very moment
        file.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _alone(file: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    """Opens the file, by default to write and made if it is missing, for one at a time, at most until a process dies.

    Looking at the holder and taking its place are then one act: two that find the same dead holder come one after the
    other, and the second finds the first.
    """
    while True:
        descriptor = _open(file, flags)
        try:
            _wait_for(descriptor)
            if _is_at(descriptor, file):  # else the one before has removed it while this one waited
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _open(file: Path, flags: int) -> int:
    """Opens or makes the file, in a folder that another run may just have removed; links and pipes are no locks."""
    for attempt in range(10):
        try:
            descriptor = os.open(file, flags | NO_LINK, 0o666)
        except FileNotFoundError:
            if attempt == 9 or not flags & os.O_CREAT:
                raise
            file.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as problem:
            if problem.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise _no_lock(file) from None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        break
    raise _no_lock(file)


def _no_lock(file: Path) -> BadFile:
    return BadFile(f"{file} is not the studio's (a run keeps its lock there): remove it, or choose another folder")


def _wait_for(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without such locks: then the holder's name alone has to do
        if sys.platform == "win32":
            os.lseek(descriptor, 2**20, os.SEEK_SET)  # behind the text, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except OSError:
        return False


def _read(descriptor: int, file: Path) -> dict[str, Any]:
    """Returns the holder; none where the file is empty, or broken off because its writer died.

    Raises:
        BadFile: it holds something else.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 2**16).decode(errors="replace").strip("\0 \n")  # a crash of the system leaves NULs
    if not BEGINS.startswith(text[: len(BEGINS)]):
        raise _no_lock(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    sound = isinstance(content.get("pid"), int) and isinstance(content.get("host"), str) and "started" in content
    return content if sound else {}


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())
