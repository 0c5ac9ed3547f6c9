"""Telling a process from a later one with the same number."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["started"]


def started(pid: int) -> str | None:
    """Returns when a process started, in words that only have to be equal; None where there is no such process.

    Example:
        >>> started(os.getpid()) == started(os.getpid()), started(2**30)
        (True, None)
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # the name in parentheses may hold anything, blanks included; the start time is the 20th field after it
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
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
