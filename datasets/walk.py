"""The files below a folder: links are followed once, and what is no data is named, not walked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from studio.limits import within
from studio.runs import is_run
from studio.shown import shown

__all__ = ["SkippedFile", "files_below"]

# what the system shows of itself; a link into it leads to a hundred thousand files, some without end
SYSTEM: Final = ("/proc", "/sys", "/dev")


@dataclass(frozen=True)
class SkippedFile:
    """A file, or a line of ``metadata.jsonl``, that is not used; ``reason`` completes "this file ..."."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.file.name)} {shown(self.reason)}"


def files_below(folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """Returns all files below a folder, sorted by path.

    Args:
        folder: where to look; hidden folders in it are named.
        skipped: takes the folders that are not looked into, with the reason.

    Raises:
        BadFile: there are more files and folders than the limit allows.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting, count = [folder], 0
    while waiting:  # not os.walk, which calls itself at each level
        here = waiting.pop()
        try:
            place = here.stat()
            reason = _no_data(here, folder)
            if (place.st_dev, place.st_ino) in seen:
                continue
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name) if not reason else []
        except OSError as error:
            entries, reason = [], f"cannot be listed: {error.strerror}"
        if reason:
            skipped.append(SkippedFile(here, reason))
            continue
        seen.add((place.st_dev, place.st_ino))
        count += len(entries)
        within("folder-files", count, f"{shown(folder)} has at least")
        folders = {entry.name for entry in entries if _is_folder(entry)}
        found += [here / entry.name for entry in entries if entry.name not in folders]
        hidden = {name for name in folders if name.startswith(".") or name == "__MACOSX"}
        skipped += [SkippedFile(here / name, "is a hidden folder, which is not looked into") for name in hidden]
        waiting += [here / name for name in sorted(folders - hidden, reverse=True)]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _no_data(here: Path, folder: Path) -> str:
    if here == folder or here.is_symlink():
        real = os.path.realpath(here)
        if any(real == place or real.startswith(f"{place}/") for place in SYSTEM) and not real.startswith("/dev/shm"):
            return "leads into the system's own files, which are no data"
    return "is the folder of a run: its previews are no data" if here != folder and is_run(here) else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False
