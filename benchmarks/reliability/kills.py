"""Kills and signals: a run is ended at a moment; what is there then is whole, and the same command goes on from there.

Each trial is a process of its own, on an embedded base. A run that was killed goes on with the same command and ends in
the adapter, previews and log of a run in one go; pictures that were being drawn go on counting.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.reliability._forked import End
from benchmarks.reliability._jobs import Job, jobs, leftovers, numbered
from benchmarks.reliability._moments import Call, File, Moment
from benchmarks.reliability.trial import MEMORY, Trial

TITLE: Final = "kills and signals"
INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Way:
    """How a process is ended.

    Args:
        name: in words. signals: what it is sent, one after the other.
        gap: seconds between two of them. asks: whether it may end in order.
    """

    name: str
    signals: tuple[signal.Signals, ...]
    gap: float = 0.0
    asks: bool = True

    def strike(self) -> None:
        """Sends them to this process, from another one, and waits for them."""
        me = os.getpid()
        if os.fork() == 0:
            time.sleep(0.02)  # so long Python has work with the fork
            for number in self.signals:
                os.kill(me, number)
                time.sleep(self.gap)
            os._exit(0)
        time.sleep(0.3 + self.gap * len(self.signals))


WAYS: Final = (
    Way("SIGKILL", (signal.SIGKILL,), asks=False),
    Way("SIGINT", (signal.SIGINT,)),
    Way("two SIGINTs", (signal.SIGINT,) * 2, 0.05),
    Way("SIGTERM", (signal.SIGTERM,)),
    Way("SIGSTOP, SIGKILL", (signal.SIGSTOP,), asks=False),
    Way("SIGHUP", (signal.SIGHUP,)),
    Way("SIGINT, SIGTERM at once", (signal.SIGINT, signal.SIGTERM)),
)
LOOP: Final = "studio.trainers.loop"
BEGINNING: Final = (
    Call("studio.trainers.opening:choose_device"),
    Call("studio.trainers.opening:recipe_for"),
    File("open", "*/run/.lock"),
    File("open", "*/run/.run.toml.*"),
    File("os.rename", "*/run/log.jsonl"),
    File("open", "*/run/log.jsonl"),
)
STEPS: Final = (
    Call("accelerate:Accelerator.backward", 2),
    Call(f"{LOOP}.weights:Weights.step", 1),
    Call(f"{LOOP}.log:Log.step", 3),
    File("open", "*/checkpoints/.step-*.safetensors.*", 2),
    File("os.rename", "*/checkpoints/step-000002.safetensors"),
    File("open", "*/checkpoints/.step-*.state.*"),
    File("os.rename", "*/checkpoints/step-000001.state"),
    File("os.rename", "*/checkpoints/step-000002.state"),
    Call(f"{LOOP}.training:save_previews", 2),
    File("os.rename", "*/previews/step-000002-00.*"),
)
ENDING: Final = (
    File("open", "*/run/.adapter.safetensors.*"),
    File("os.rename", "*/run/adapter.safetensors"),
    File("os.rename", "*/previews/step-000003-00.*"),
    File("os.rename", "*/run/report.html"),
    File("os.rename", "*/run/result.toml"),
    File("os.remove", "*/checkpoints/step-*.state"),
    File("os.remove", "*/run/.lock"),
)
CACHING: Final = (File("open", "*/cache/tensors/*.tmp", 2), File("os.rename", "*/cache/tensors/*", 3))
RESUMING: Final = (
    File("open", "*/run/.lock"),
    Call(f"{LOOP}.weights:Weights.restore"),
    File("os.rename", "*/run/run.toml"),
    File("os.rename", "*/run/log.jsonl"),
    Call(f"{LOOP}.weights:Weights.step"),
    File("os.rename", "*/run/adapter.safetensors"),
)
DRAWING: Final = (
    Call("studio.pipelines.sample:_conditioning", 1),
    Call("studio.pipelines.sample:_guided", 2),
    File("open", "*/run/.0000.png.*"),
    File("os.rename", "*/run/0001.png"),
    File("open", "*/run/.0002.png.*"),
    File("os.rename", "*/run/0003.png"),
)
MOMENTS: Final[dict[str, tuple[Moment, ...]]] = {
    "tune": (*BEGINNING, *STEPS, *ENDING),
    "dreambooth": (*CACHING, *STEPS, *ENDING[:2]),
    "style": (CACHING[1], STEPS[0], STEPS[4], STEPS[8], ENDING[2], ENDING[4]),
    "generate": DRAWING,
}
TIMES: Final = {"tune": 2, "dreambooth": 1, "style": 1, "generate": 2}
"""In how many ways a command is ended at each moment."""


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Ends commands at all moments in several ways, while they go on after that, and at random; or a few."""
    made, place = jobs(folder), numbered(folder)
    if not long:
        for moment, way in zip((STEPS[5], STEPS[0]), WAYS, strict=False):
            yield trial(made["tune"], place(), way, moment)
        return
    for name in MOMENTS:
        yield from at_moments(made[name], place)
    yield from twice(made, place)
    yield from by_chance(made, place)


def at_moments(job: Job, place: Callable[[], Path]) -> Iterator[Trial]:
    """A command at all its moments."""
    ways = cycle(WAYS)
    for moment in MOMENTS[job.name]:
        for _ in range(TIMES[job.name]):
            yield trial(job, place(), next(ways), moment)


def twice(made: dict[str, Job], place: Callable[[], Path]) -> Iterator[Trial]:
    """Runs that are ended once more while they go on."""
    for moment, name, way in zip(RESUMING, cycle(("tune", "dreambooth")), cycle(WAYS), strict=False):
        yield trial(made[name], place(), way, STEPS[6], moment)


def by_chance(made: dict[str, Job], place: Callable[[], Path]) -> Iterator[Trial]:
    """Commands at any moment."""
    chance, ways = random.Random(0), cycle(WAYS)
    for job in list(made.values()) * 2:
        yield at_random(job, place(), next(ways), chance.random())


def trial(job: Job, place: Path, way: Way, *moments: Moment) -> Trial:
    """Ends a command at a moment, and what goes on after it at the next; the last time nothing happens."""
    name = f"{job.name}: {way.name} at {', then '.join(map(str, moments))}"
    ends: list[End] = []
    fault = ""
    for moment in moments:
        ends.append(job.end(place, prepare=lambda moment=moment: moment.await_it(way.strike)))
        fault = fault or ended(ends[-1], way, place) or torn(job, place, way)
    return concluded(name, fault or job.again(place), ends)


def at_random(job: Job, place: Path, way: Way, share: float) -> Trial:
    """Ends a command after a share of the time that it takes."""
    begin = time.monotonic()
    job.end(place)
    delay = share * (time.monotonic() - begin)
    place = place / "again"
    place.mkdir()

    def meddle(pid: int) -> None:
        time.sleep(delay)
        for number in way.signals:
            os.kill(pid, number)
            time.sleep(way.gap)

    end = job.end(place, meddle=meddle)
    over = end.code == 0
    fault = ("" if over else ended(end, way, place)) or torn(job, place, way)
    return concluded(f"{job.name}: {way.name} after {delay:.2f} s", fault or job.again(place), [end])


def concluded(name: str, fault: str, ends: list[End]) -> Trial:
    """A trial of some processes."""
    memory = max(end.memory for end in ends)
    fault = fault or next((end.unsaid for end in ends if end.unsaid), "")
    fault = fault or (f"it took {memory / 1e9:.1f} GB" if memory > MEMORY else "")
    return Trial(name, fault, max(end.seconds for end in ends), memory)


def ended(end: End, way: Way, place: Path) -> str:
    """Says what is wrong with how a process ended that was struck."""
    if end.unsaid:
        return end.unsaid
    right = INTERRUPTED if way.asks else -signal.SIGKILL
    if end.code == 0 and way.asks and "step 3/3" in end.said:  # asked in its last step, it ends well
        return ""
    if end.code != right:
        return f"it ended with {end.code}, not {right}: {end.said[-200:]!a}"
    last = end.said.splitlines()[-1] if end.said else ""
    if way.asks and len(way.signals) == 1 and last != "interrupted":
        return f"its last word is {last!a}"
    return ""


def torn(job: Job, place: Path, way: Way) -> str:
    """Says what is wrong with the files that a process left which was struck."""
    in_order = way.asks and len(way.signals) == 1
    return ("" if job.counts else job.torn(place)) or (leftovers(place) if in_order else "")
