"""What stands where a file or a folder of a command shall be: another thing, a pipe, links to nowhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.reliability._jobs import Job, complaint, leftovers
from benchmarks.reliability._moments import Call
from benchmarks.reliability.kills import WAYS, concluded
from benchmarks.reliability.trial import Trial
from studio.temporary import remove

__all__ = ["occupied"]

INSIDE: Final = (
    "run", "run/.lock", "run/run.toml", "run/checkpoints", "run/previews", "run/log.jsonl", "run/adapter.safetensors",
    "run/report.html",
)  # fmt: skip


def _fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")


OBSTACLES: Final[dict[str, Callable[[Path], None]]] = {
    "a file": lambda spot: spot.write_text("mine") and None,
    "a full folder": _fill,
    "a pipe": lambda spot: os.mkfifo(spot),
    "a link to nothing": lambda spot: spot.symlink_to(spot.parent / "nowhere"),
    "a link to a full device": lambda spot: spot.symlink_to("/dev/full"),
    "a link to itself": lambda spot: spot.symlink_to(spot),
}


def occupied(made: dict[str, Job], place: Callable[[], Path]) -> Iterator[Trial]:
    """Something else stands where a file or folder shall be, in a new folder or in that of a run that was killed."""
    killed = place()
    made["tune"].end(killed, prepare=lambda: Call("studio.trainers.loop.log:Log.step", 3).await_it(WAYS[0].strike))
    turn = cycle(OBSTACLES.items())  # 11 places and 6 things: a thing is at another place each time
    for _ in range(3):
        for where in INSIDE:
            spot = place()
            if where != "run":
                shutil.copytree(killed / "run", spot / "run", ignore=shutil.ignore_patterns(".lock"))
            yield in_the_way(made["tune"], spot, where, *next(turn))
        for where in ("run", "run/0000.png", "sheet.png"):
            spot = place()
            (spot / where).parent.mkdir(exist_ok=True)
            yield in_the_way(made["generate"], spot, where, *next(turn))


def in_the_way(job: Job, place: Path, where: str, what: str, make: Callable[[Path], None]) -> Trial:
    """Puts something in the way of a command, which names it and lets it be, or does without that place."""
    spot = place / where
    remove(spot)
    make(spot)
    before = os.lstat(spot)
    end = job.end(place, *(("--grid", str(place / "sheet.png")) if job.counts else ()))
    if end.code:
        fault = complaint(end, place) or (leftovers(place) if where != "run/.lock" else "")
        stays = os.path.lexists(spot) and os.path.samestat(before, os.lstat(spot))
        fault = fault or ("" if stays else "what stood there is gone")
    else:  # a log that was lost is told and begun anew
        fault = "" if job.counts or where == "run/log.jsonl" else job.torn(place)
    return concluded(f"{job.name}: {what} at {where}", fault, [end])
