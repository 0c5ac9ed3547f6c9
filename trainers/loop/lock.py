"""A lock that names a live process: whoever died, by whatever signal, holds nothing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.errors import DoesNotFit

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["locked"]


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the lock ``file`` while the context lasts.

    The file names the holder by process id and start time, so that neither a killed process nor a later one with the
    same id counts as the holder. On another host (a shared file system) the holder is believed to be alive.

    Raises:
        DoesNotFit: a live process holds it.
    """
    pid = os.getpid()
    mine = {"pid": pid, "started": _started(pid), "host": platform.node(), "token": secrets.token_hex(8)}
    _take(file, mine)
    try:
        yield
    finally:
        _leave(file, mine)


def _take(file: Path, mine: dict[str, Any]) -> None:
    with _alone(file) as descriptor:
        holder = _read(descriptor)
        if holder and _alive(holder):
            raise DoesNotFit(
                f"the run in {file.parent} is still going on (process {holder['pid']} on {holder['host']}): wait "
                "for it, stop it, or choose another output folder"
            )
        _write(descriptor, json.dumps(mine))


def _leave(file: Path, mine: dict[str, Any]) -> None:
    if not file.exists():
        return
    with _alone(file) as descriptor:
        if _read(descriptor).get("token") == mine["token"]:
            _write(descriptor, "")  # nobody's, where an open file cannot be removed
            with contextlib.suppress(OSError):
                file.unlink()


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[int]:
    """Opens the file, made if it is missing, for one at a time; the system ends that when a process dies.

    Looking at the holder and taking its place are then one act: two that find the same dead holder come one after the
    other, and the second finds the first.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait_for(descriptor)
            if _is_at(descriptor, file):  # else the one before has removed it while this one waited
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without such locks: then the holder's name alone has to do
        if sys.platform == "win32":
            os.lseek(descriptor, 2**20, os.SEEK_SET)  # behind the text, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    """Returns the holder; none where the file is empty, or broken off because its writer died."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(descriptor, 2**16))
    except ValueError:
        return {}
    return content if isinstance(content, dict) and {"pid", "started", "host"} <= content.keys() else {}


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())


def _alive(holder: dict[str, Any]) -> bool:
    return holder["host"] != platform.node() or _started(holder["pid"]) == holder["started"]


def _started(pid: int) -> str | None:
    """Returns when a process started, in words that only have to be equal; None where there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # the name in parentheses may hold anything, blanks included; the start time is the 20th field after it
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        boot = Path("/proc/sys/kernel/random/boot_id")
        return None if fields[0] in "ZX" else f"{fields[19]} {boot.read_text().strip() if boot.exists() else ''}"
    if os.name == "nt":
        command = ["powershell", "-NoProfile", "-Command", f"(Get-Process -Id {pid}).StartTime.Ticks"]
    else:
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
