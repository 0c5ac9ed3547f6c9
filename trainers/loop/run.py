"""A run: one training in one folder.

::

    run.toml            every setting as decided, and what the run started from
    log.jsonl           one line per step
    checkpoints/        the adapter every N steps, and the state to go on from
    previews/           pictures or texts over time, and what was measured then
    adapter.safetensors the result; report.html: the run on one page; result.toml: written last

The same command in the same folder goes on where it stopped; a finished run says so; a folder with other settings,
with something else in it, or with a run that is still going on is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from studio.atomic import atomic_path, atomic_write
from studio.config import differences, plain, read_toml, to_toml
from studio.errors import BadFile, DoesNotFit
from studio.trainers.loop import checkpoint
from studio.trainers.loop.lock import locked
from studio.trainers.loop.plan import FREE
from studio.trainers.loop.preview import read_measures
from studio.trainers.loop.task import Lesson

__all__ = ["Run", "RunFolder", "claim", "sha256"]

COMPARED: Final = ("adapter", "training", "task", "inputs")
OURS: Final = (
    "run.toml",
    "log.jsonl",
    "checkpoints",
    "previews",
    "tensorboard",
    "report.html",
    "result.toml",
    "adapter.safetensors",
)
LOCK: Final = ".lock"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run's folder.
        adapter: the adapter's file.
        report: the report's HTML file.
        losses: loss of each step.
        measures: step -> what was measured on what is held out; empty where nothing is.
        already: the run was finished before this call, which has therefore done nothing.
    """

    folder: Path
    adapter: Path
    report: Path
    losses: tuple[float, ...] = field(repr=False)
    measures: Mapping[int, Mapping[str, float]] = field(default_factory=dict, repr=False)
    already: bool = False


@dataclass
class RunFolder:
    """A folder that this process holds."""

    folder: Path

    @property
    def log(self) -> Path:
        """The log, one JSON object per line."""
        return self.folder / "log.jsonl"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.folder / "adapter.safetensors"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def settings(self, lesson: Lesson) -> dict[str, Any]:
        """Returns what ``run.toml`` says about a lesson."""
        plan = plain(lesson.plan)
        return {
            "adapter": {"method": lesson.adapter.method, **plain(lesson.adapter)},
            "training": {name: value for name, value in plan.items() if name not in FREE},
            "task": dict(lesson.settings),
            "inputs": dict(lesson.inputs),
            "free": {**{name: value for name, value in plan.items() if name in FREE}, **lesson.recorded},
        }

    def check(self, settings: Mapping[str, Any]) -> bool:
        """Compares with what the folder holds.

        Returns:
            Whether a finished run with these settings is there.

        Raises:
            DoesNotFit: a run with other settings is there; each difference is named.
            BadFile: the finished run's adapter is gone or was changed.
        """
        file = self.folder / "run.toml"
        if not file.is_file():
            return False
        held = read_toml(file)
        before, now = ({part: content.get(part, {}) for part in COMPARED} for content in (held, settings))
        found = differences(before, now)
        if found:
            raise DoesNotFit(
                f"{self.folder} holds a run with other settings: {'; '.join(found)}; take the same settings to go on "
                "with it, or choose another output folder"
            )
        result = self.folder / "result.toml"
        if not result.is_file():
            return False
        if not self.adapter.is_file() or sha256(self.adapter) != read_toml(result).get("adapter"):
            state = "was changed" if self.adapter.is_file() else "is gone"
            raise BadFile(f"the run in {self.folder} is finished, and its {self.adapter.name} {state}: put it back, or "
                          "choose another output folder")  # fmt: skip
        return True

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes ``run.toml``."""
        atomic_write(self.folder / "run.toml", to_toml(dict(settings)))

    def probe(self, size: int) -> None:
        """Checks, before training, that there is room for ``size`` more bytes.

        Raises:
            BadFile: the folder is not writable, or the disk or the quota is full.
        """
        file = self.folder / ".room"
        try:
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, max(size, 1))
                else:
                    for _ in range(size // 2**20 + 1):
                        stream.write(bytes(2**20))
        except BadFile as problem:
            where = str(problem).replace(str(file), str(self.folder))
            raise BadFile(f"{where} (a run here needs {size / 2**20:.0f} MiB)") from None
        finally:
            file.unlink(missing_ok=True)

    def rewind(self, step: int) -> list[float]:
        """Cuts the log behind ``step`` and returns the losses of the steps before.

        A killed process may have logged steps that no checkpoint holds, and half a line.
        """
        lines, losses = [], []
        for line in self.log.read_text().splitlines() if self.log.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if entry["step"] > step:
                break
            lines.append(line)
            losses.append(float(entry["loss"]))
        atomic_write(self.log, "".join(f"{line}\n" for line in lines))
        return losses

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Writes ``result.toml``, after which the run is finished."""
        atomic_write(self.folder / "result.toml", to_toml({"adapter": sha256(self.adapter), **facts}))
        checkpoint.remove_states(self.folder)

    def result(self, *, already: bool) -> Run:
        """Returns the finished run."""
        losses = [float(json.loads(line)["loss"]) for line in self.log.read_text().splitlines()]
        return Run(self.folder, self.adapter, self.report, tuple(losses), read_measures(self.folder), already)


@contextlib.contextmanager
def claim(output: str | os.PathLike[str]) -> Iterator[RunFolder]:
    """Makes or takes the folder of a run and holds it while the context lasts.

    If the training ends in an error before its first checkpoint, everything that was made here is removed again.

    Raises:
        BadFile: the folder cannot be made or written to, or it holds something else.
        DoesNotFit: a live process holds it.
    """
    folder = Path(output).expanduser()
    if folder.is_dir():
        others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if others and not (folder / "run.toml").is_file():
            raise BadFile(
                f"{folder} is no run: it holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; "
                "choose a new or empty folder"
            )
    made = _make(folder)
    try:
        with locked(folder / LOCK):
            fresh = not (folder / "run.toml").is_file()
            try:
                yield RunFolder(folder)
            except BaseException:
                if fresh and not any((folder / "checkpoints").glob("step-*.state")):
                    _clear(folder)
                raise
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # it holds something by now
                place.rmdir()


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _make(folder: Path) -> list[Path]:
    """Makes a folder with its parents; returns those that were not there, innermost first."""
    missing = []
    place = folder
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    try:
        atomic_write(folder / ".room", "")
        (folder / ".room").unlink()
    except BadFile as problem:
        raise BadFile(str(problem).replace(str(folder / ".room"), str(folder))) from None
    except OSError as problem:
        raise BadFile(f"cannot write to {folder}: {problem.strerror}; choose another folder") from problem
    return missing


def _clear(folder: Path) -> None:
    for name in OURS:
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
