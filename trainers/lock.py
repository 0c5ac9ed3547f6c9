"""A lock that names a live process: whoever died, by whatever signal, holds nothing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.errors import DoesNotFit

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
        if _read(file).get("token") == mine["token"]:
            file.unlink(missing_ok=True)


def _take(file: Path, mine: dict[str, Any]) -> None:
    for _ in range(20):
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            holder = _read(file)
            if not holder:  # another process is just writing it, or died while it did
                time.sleep(0.05)
                holder = _read(file)
            if holder and _alive(holder):
                raise DoesNotFit(
                    f"the run in {file.parent} is still going on (process {holder['pid']} on {holder['host']}): wait "
                    "for it, stop it, or choose another output folder"
                ) from None
            _remove(file, holder)
            continue
        with os.fdopen(descriptor, "w") as stream:
            json.dump(mine, stream)
        return
    raise DoesNotFit(f"{file} cannot be taken: other processes keep taking it; remove it if no run is going on")


def _remove(file: Path, dead: dict[str, Any]) -> None:
    """Removes the lock of a dead process, and no other that has taken its place meanwhile."""
    aside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        file.rename(aside)
        if _read(aside) != dead and not file.exists():
            aside.rename(file)
        aside.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"pid", "started", "host"} <= content.keys() else {}


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
