"""Faults of disks: writing fails at a moment; what is there is whole, a sentence names it, and the next try ends well.

The system itself refuses: from a moment on calls fail with an error number, a disk of a few kilobytes is full, files
may not grow, folders are removed, and other things stand where a file shall be.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.reliability._forked import End
from benchmarks.reliability._jobs import Job, complaint, contents, jobs, leftovers, numbered
from benchmarks.reliability._moments import Call, File, Moment
from benchmarks.reliability._obstacles import occupied
from benchmarks.reliability._refusing import refuse
from benchmarks.reliability._saving import SAVES, Save
from benchmarks.reliability.kills import concluded
from benchmarks.reliability.trial import Trial

TITLE: Final = "faults of disks"
REASONS: Final = {
    "open": (errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.ENAMETOOLONG, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "rename": (errno.EROFS, errno.EIO, errno.ENOSPC, errno.EACCES, errno.EDQUOT),
}
"""Calls, and the numbers with which they fail in turn."""
TEXTS: Final = {
    "lock": "*/run/.lock", "run.toml": "*/run/.run.toml.*", "log": "*/run/.log.jsonl.*",
    "checkpoint": "*/checkpoints/.step-000002.safetensors.*", "state": "*/checkpoints/.step-000002.state.*",
    "preview": "*/previews/.step-000002-00.*", "measures": "*/previews/.measures.json.*",
    "adapter": "*/run/.adapter.safetensors.*", "report": "*/run/.report.html.*", "result": "*/run/.result.toml.*",
}  # fmt: skip
PICTURES: Final = {
    "cache": "*/cache/tensors/*.tmp", "preview": "*/previews/.step-000002-00.*", "state": "*/.step-000001.state.*",
}  # fmt: skip
DRAWN: Final = {"picture": "*/run/.0002.png.*", "sheet": "*/.sheet.png.*"}
DEVICE: Final = ("open", "write", "fsync", "rename", "remove", "mkdir", "room")
SIZES: Final = (0, 2_000, 30_000, 120_000)
"""Bytes that no file may grow beyond."""


@dataclass(frozen=True)
class Fault:
    """What happens to the disk.

    Args:
        calls: what fails from then on. error: with which number.
    """

    calls: tuple[str, ...]
    error: int

    def happen(self) -> None:
        """Happens, in this process."""
        refuse(self.calls, self.error)

    def __str__(self) -> str:
        calls = "everything" if self.calls == DEVICE else " and ".join(self.calls)
        return f"{errno.errorcode[self.error]} of {calls}"


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """All faults of all files; or those of the files of an adapter."""
    place = numbered(folder)
    yield from saved(place, long)
    if not long:
        return
    made = jobs(folder)
    for name, kinds in (("tune", TEXTS), ("dreambooth", PICTURES), ("generate", DRAWN)):
        yield from refused(made[name], kinds, place)
    yield from broken(made["tune"], place)
    yield from removed(made["tune"], place)
    yield from bounded(made, place)
    yield from occupied(made, place)
    yield from small(made, place)


def moment_of(call: str, pattern: str) -> File:
    """When a call is to fail that makes a file whose temporary name has a pattern."""
    if call != "rename":
        return File("open", pattern)
    return File("os.rename", pattern.replace("/.", "/").replace("*.tmp", "*").removesuffix(".*") + "*")


def refused(job: Job, kinds: dict[str, str], place: Callable[[], Path]) -> Iterator[Trial]:
    """Every call on every kind of file of a command fails."""
    numbers = {call: cycle(errors) for call, errors in REASONS.items()}
    for pattern in kinds.values():
        for call in REASONS:
            if call in ("fsync", "rename") and pattern.endswith("/.lock"):
                continue  # it is never renamed
            yield trial(job, place(), Fault((call,), next(numbers[call])), moment_of(call, pattern))


def broken(job: Job, place: Callable[[], Path]) -> Iterator[Trial]:
    """All of a device fails and stays so; folders cannot be made, files not removed, a log line not written."""
    moments = (
        File("open", "*/run/.lock"), Call("studio.trainers.loop.log:Log.step", 2),
        File("open", TEXTS["state"]), File("open", TEXTS["adapter"]), File("os.rename", "*/run/result.toml"),
    )  # fmt: skip
    for moment, error in zip(moments, cycle((errno.EROFS, errno.EIO)), strict=False):
        yield trial(job, place(), Fault(DEVICE, error), moment)
    for event, pattern, calls, error in (
        ("os.mkdir", "*/run", ("mkdir",), errno.EACCES),
        ("os.mkdir", "*/checkpoints", ("mkdir",), errno.ENOSPC),
        ("os.mkdir", "*/previews", ("mkdir",), errno.EDQUOT),
        ("open", "*/run/..room.*", ("room",), errno.ENOSPC),
        ("open", "*/run/..room.*", ("room",), errno.EIO),
        ("os.remove", "*/checkpoints/*.state", ("remove",), errno.EROFS),
        ("os.remove", "*/run/.lock", ("remove",), errno.EIO),
        ("open", "*/run/log.jsonl", ("open",), errno.EACCES),
        ("open", "*/run/log.jsonl", ("write",), errno.ENOSPC),
    ):
        # where only removing fails, nothing is lost and the run may end well
        yield trial(job, place(), Fault(calls, error), File(event, pattern), (0, 2) if calls == ("remove",) else (2,))
    step = Call("studio.trainers.loop.log:Log.step", 2)
    for error in REASONS["write"]:
        yield trial(job, place(), Fault(("write",), error), step)


def removed(job: Job, place: Callable[[], Path]) -> Iterator[Trial]:
    """The run's folder, or a part of it, is removed or put elsewhere meanwhile."""
    for moment in (
        File("open", "*/run/.run.toml.*"), Call("studio.trainers.loop.weights:Weights.step", 2),
        File("open", TEXTS["state"]), Call("studio.trainers.loop.training:save_previews", 2),
        File("open", TEXTS["adapter"]), File("open", TEXTS["result"]),
    ):  # fmt: skip
        for part in ("", "checkpoints"):
            spot = place()
            gone = partial(shutil.rmtree, spot / "run" / part, ignore_errors=True)
            name, codes = f"{part or 'the folder'} removed at {moment}", (0, 2) if part else (2,)
            yield struck(job, spot, name, moment, gone, codes, lost=part)


def bounded(made: dict[str, Job], place: Callable[[], Path]) -> Iterator[Trial]:
    """No file may grow beyond some bytes."""
    for name, size in ((name, size) for name in ("tune", "generate") for size in SIZES):
        spot = place()
        end = made[name].end(spot, prepare=partial(bound, size))
        fault = "" if end.code == 0 else complaint(end, spot) or leftovers(spot)
        fault = fault or ("" if made[name].counts else made[name].torn(spot)) or made[name].again(spot)
        yield concluded(f"{name}: no file beyond {size:,} bytes", fault, [end])


def bound(size: int) -> None:
    """Lets no file of this process grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def small(made: dict[str, Job], place: Callable[[], Path]) -> Iterator[Trial]:
    """A disk of a few kilobytes; where none can be made (that takes an administrator), there are no trials."""
    for name, size in (*(("generate", size) for size in (4, 8, 12, 20)), *(("tune", size) for size in (4, 64, 4096))):
        spot = place()
        with disk(spot, size) as there:
            if not there:
                return
            end = made[name].end(spot)
            fault = "" if end.code == 0 else complaint(end, spot) or leftovers(spot)
            subprocess.run(["mount", "-o", "remount,size=64m", str(spot)], check=True)
            yield concluded(f"{name} on a disk of {size} KiB", fault or made[name].again(spot), [end])
    for moment in (File("open", TEXTS["state"]), File("open", TEXTS["adapter"]), File("open", "*/run/log.jsonl")):
        spot = place()
        with disk(spot, 65_536):
            full = struck(made["tune"], spot, f"the disk is full at {moment}", moment, partial(fill, spot))
            yield full


@contextlib.contextmanager
def disk(spot: Path, size: int) -> Iterator[bool]:
    """A disk of so many KiB at a folder, as long as the context lasts; whether there is one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(spot)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(spot)], check=True)


def fill(folder: Path) -> None:
    """Leaves no byte on a disk, but for a file that can be removed."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass


def trial(job: Job, place: Path, fault: Fault, moment: Moment, codes: tuple[int, ...] = (2,)) -> Trial:
    """Something fails from a moment on."""
    stays = "remove" in fault.calls
    return struck(job, place, f"{fault} at {moment}", moment, fault.happen, codes, stays=stays)


def struck(
    job: Job, place: Path, name: str, moment: Moment, action: Callable[[], object], codes: tuple[int, ...] = (2,),
    *, stays: bool = False, lost: str = "",
) -> Trial:  # fmt: skip
    """Does something to the disk at a moment; then the same command must end well on a sound one."""
    more = ("--grid", str(place / "sheet.png")) if job.counts else ()
    end = job.end(place, *more, prepare=lambda: moment.await_it(action))
    wrong = complaint(end, place, codes) if end.code else ("" if 0 in codes else "it ended as if nothing had happened")
    (place / "filler").unlink(missing_ok=True)
    wrong = wrong or ("" if job.counts else job.torn(place)) or ("" if stays else leftovers(place))
    return concluded(f"{job.name}: {name}", wrong or job.again(place, lost), [end])


def saved(place: Callable[[], Path], long: bool) -> Iterator[Trial]:
    """Adapters are saved in every form: to a new place, and over one that is there."""
    numbers = {call: cycle(errors) for call, errors in REASONS.items()}
    for save in SAVES if long else SAVES[:2]:
        for pattern in save.patterns:
            for call in REASONS:
                for over in (False, True) if long else (True,):
                    fault = Fault((call,), next(numbers[call]))
                    yield saving(save, place(), fault, moment_of(call, pattern), over=over)


def saving(save: Save, place: Path, fault: Fault, moment: Moment, *, over: bool) -> Trial:
    """Saves while something fails, and again."""
    whole = save.whole(place, 2)
    if over:
        save.end(place, 1)
    before = contents(place)
    end = save.end(place, 2, lambda: moment.await_it(fault.happen))
    there = contents(place)
    if end.code:
        wrong = complaint(end, place)
    else:  # in a new folder nothing is renamed alone
        wrong = "" if there == whole and "rename" in fault.calls else "it ended as if all were well"
    if there not in (before, whole):
        wrong = wrong or f"half of it is there: {sorted(there)}"
    wrong = wrong or leftovers(place)
    again: End = save.end(place, 2)
    if again.code or contents(place) != whole:
        wrong = wrong or f"saving once more ended with {again.code}: {again.said[-200:]!a}"
    return concluded(f"{save.name}{' over another' if over else ''}: {fault} at {moment}", wrong, [end])
