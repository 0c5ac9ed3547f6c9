"""Locks and races: processes that want one run folder at once, and locks of holders that are gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Final

from benchmarks.reliability.trial import Trial, attempt
from studio.errors import StudioError
from studio.trainers.loop.claim import claim
from studio.trainers.loop.lock import locked

TITLE: Final = "locks and races for a run's folder"
FORK: Final[Any] = multiprocessing.get_context("fork")


def contend(output: Path, said: Queue[str], start: Any, end: Any) -> None:
    """One of those who want the folder: says "won", or the sentence that it got instead."""
    start.wait(10)
    try:
        with claim(output):
            said.put("won")
            end.wait(10)
    except StudioError as refused:
        said.put(f"refused: {refused}")
    except BaseException as other:
        said.put(f"{type(other).__name__}: {other}")


def race(output: Path, count: int) -> str:
    """Lets ``count`` processes want a new folder at the same moment; one wins, the others are told who has it."""
    said, start, end = FORK.Queue(), FORK.Event(), FORK.Event()
    runners = [FORK.Process(target=contend, args=(output, said, start, end)) for _ in range(count)]
    for runner in runners:
        runner.start()
    start.set()
    heard = [said.get(timeout=20) for _ in runners]
    end.set()
    for runner in runners:
        runner.join(20)
    lost = [one for one in heard if one != "won"]
    if heard.count("won") != 1:
        return f"{heard.count('won')} won: {heard}"
    if any("still going on" not in one for one in lost):
        return f"a loser was told: {lost}"
    left = [file.name for file in output.iterdir() if file.name != ".lock"] if output.exists() else []
    return f"left behind: {left}" if left else ""


def stale(folder: Path, holder: Any) -> str:
    """A lock file of one who is gone, or of no one: the folder can be had."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    file.write_text(holder if isinstance(holder, str) else json.dumps(holder))
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(file, (long_ago, long_ago))
    with locked(file):
        return ""


def again(folder: Path) -> str:
    """Who has let go can have it again, and leaves no lock."""
    file = folder / ".lock"
    for _ in range(3):
        with locked(file):
            pass
    return "the lock is still there" if file.exists() and file.read_text().strip() else ""


def holders() -> Iterator[Any]:
    """What stale lock files may hold."""
    gone = {"pid": 2**22 - 3, "host": socket.gethostname(), "started": 1.0}
    yield gone
    yield {**gone, "started": None}
    yield {**gone, "host": "a-container-that-is-gone"}
    yield {**gone, "pid": -1}
    yield from ("", "{", "[]", "null", "1", "{}", '{"pid": "x"}', "\x00" * 40, "[" * 5000)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Races of two to five processes, and all stale locks."""
    for number in range(30 if long else 4):
        count = 2 + number % 4
        yield attempt(f"{count} processes, {number}", lambda n=number, c=count: race(folder / f"race-{n}", c))
    for number, holder in enumerate(holders()):
        name = f"a stale lock: {str(holder)[:60]!a}"
        yield attempt(name, lambda n=number, h=holder: stale(folder / f"stale-{n}", h))
    (folder / "again").mkdir()
    yield attempt("let go and taken again", lambda: again(folder / "again"))
