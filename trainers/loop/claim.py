"""Taking the folder of a run: one process at a time, and nothing left behind where nothing was begun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from studio.atomic import sentences
from studio.errors import BadFile
from studio.given import given_path
from studio.runs import RUN_ADAPTER, RUN_FILE, is_run
from studio.temporary import remove, remove_leftovers
from studio.trainers.loop.group import Group
from studio.trainers.loop.lock import locked
from studio.trainers.loop.run import RESULT, RunFolder

__all__ = ["claim", "held"]

LOCK: Final = ".lock"
KEPT_IN: Final = ("checkpoints", "previews")  # folders of a run in which files are written
OURS: Final = (RUN_FILE, "log.jsonl", *KEPT_IN, "tensorboard", "report.html", RESULT, RUN_ADAPTER)


@contextlib.contextmanager
def claim(output: str | os.PathLike[str]) -> Iterator[RunFolder]:
    """Makes or takes the folder of a run and holds it while the context lasts.

    If the training ends in an error before its first checkpoint, everything that was made here is removed again.

    Raises:
        BadFile: the folder cannot be made or written to, or it holds something else.
        DoesNotFit: a live process holds it.
    """
    folder = given_path(output, "output")
    made = _missing(folder)
    try:
        with contextlib.ExitStack() as held:
            _take(folder, held)
            _check_ours(folder)
            for place in (folder, *(folder / name for name in KEPT_IN)):
                remove_leftovers(place)
            fresh = not is_run(folder)
            try:
                yield RunFolder(folder)
            except BaseException:
                if fresh and not any((folder / "checkpoints").glob("step-*.state")):
                    _clear(folder)
                raise
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # it holds something by now, or was never made
                place.rmdir()


@contextlib.contextmanager
def held(output: str | os.PathLike[str], group: Group) -> Iterator[RunFolder]:
    """Holds the folder of a run of several processes: the main one claims it, the others look at it.

    Args:
        output: the folder. group: the processes.

    Raises:
        BadFile, DoesNotFit: as :func:`claim`, in the main process.
    """
    if not group.main:
        yield RunFolder(given_path(output, "output"))
        return
    with claim(output) as folder:
        yield folder


def _missing(folder: Path) -> list[Path]:
    """Returns the folder and its parents as far as they are not there, innermost first.

    Raises:
        BadFile: a link stands there that leads nowhere.
    """
    if folder.is_symlink() and not folder.exists():
        raise BadFile(f"{folder} is a link to {folder.readlink()}, which is not there: make that, or name another")
    missing, place = [], folder
    while not os.path.lexists(place) and place != place.parent:
        missing.append(place)
        place = place.parent
    return missing


def _take(folder: Path, held: contextlib.ExitStack) -> None:
    """Makes the folder and holds its lock until ``held`` ends."""
    try:
        with sentences(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK))
    except OSError as problem:
        raise BadFile(f"cannot write to {folder}: {problem.strerror}; choose another folder") from problem


def _check_ours(folder: Path) -> None:
    """Checks that a folder is empty or a run's.

    Raises:
        BadFile: it holds something else.
    """
    others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if others and not is_run(folder):
        what = f"it lacks {RUN_FILE} and" if set(others) <= set(OURS) else "it"
        raise BadFile(
            f"{folder} is no run: {what} holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; "
            "choose a new or empty folder"
        )


def _clear(folder: Path) -> None:
    # what marks the folder as a run goes last: whoever looks meanwhile sees a run
    for name in reversed(OURS):
        remove(folder / name)
