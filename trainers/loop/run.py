"""A run: one training in one folder.

::

    run.toml            every setting as decided, what the run started from, and what machine it went on
    log.jsonl           one line per step
    checkpoints/        the adapter every N steps, and the state to go on from
    previews/           pictures or texts over time, and what was measured then
    adapter.safetensors the result; report.html: the run on one page; result.toml: written last

The same command in the same folder goes on where it stopped; a finished run says so; a folder with other settings,
with something else in it, or with a run that is still going on is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from studio.atomic import atomic_path, atomic_write, sentences
from studio.config import differences, plain, read_toml, to_toml
from studio.errors import BadFile, DoesNotFit
from studio.runs import RUN_ADAPTER, RUN_FILE, is_run
from studio.temporary import remove
from studio.trainers.loop import checkpoint
from studio.trainers.loop.identity import compared, steps_of, without_length
from studio.trainers.loop.losses import final_loss, loss_name, read_log
from studio.trainers.loop.machine import noted, told
from studio.trainers.loop.plan import FREE
from studio.trainers.loop.preview import read_measures
from studio.trainers.loop.task import Lesson, Say

__all__ = ["Run", "RunFolder", "sha256"]

RESULT: Final = "result.toml"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run's folder.
        adapter: the adapter's file.
        report: the report's HTML file.
        losses: loss of each step; NaN where the log has lost it.
        measures: step -> what was measured on what is held out; empty where nothing is.
        already: the run was finished before this call, which has therefore done nothing.
        loss: the one number that the bar, the report and ``result.toml`` give too: the running mean at the end.
    """

    folder: Path
    adapter: Path
    report: Path
    losses: tuple[float, ...] = field(repr=False)
    measures: Mapping[int, Mapping[str, float]] = field(default_factory=dict, repr=False)
    already: bool = False
    loss: float = math.nan


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
        return self.folder / RUN_ADAPTER

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

    def check(self, settings: Mapping[str, Any], *, further: bool = False) -> bool:
        """Compares with what the folder holds.

        Args:
            settings: of :meth:`settings`.
            further: a run of fewer steps may train on.

        Returns:
            Whether a finished run with these settings is there.

        Raises:
            DoesNotFit: a run with other settings is there; each difference is named.
            BadFile: the finished run's adapter is gone or was changed, or the files about it cannot be read.
        """
        held = self.held
        if held is None:
            return False
        before, now = (compared(content) for content in (held, settings))
        found = differences(before, now)
        longer = found and differences(without_length(before), without_length(now)) == []
        if found and not (further and longer and steps_of(before) < steps_of(now)):
            hint = ", --continue with more steps trains on" if longer else ""
            raise DoesNotFit(
                f"{self.folder} holds a run with other settings: {'; '.join(found)}; take the same settings to go on "
                f"with it{hint}, or choose another output folder"
            )
        if self.ended is None:
            return False
        if not self.adapter.is_file() or sha256(self.adapter) != self.ended.get("adapter"):
            state = "was changed" if self.adapter.is_file() else "is gone"
            raise BadFile(f"the run in {self.folder} is finished, and its {self.adapter.name} {state}: put it back, or "
                          "choose another output folder")  # fmt: skip
        return not found

    @property
    def held(self) -> dict[str, Any] | None:
        """What ``run.toml`` says; None where there is none."""
        return self._read(RUN_FILE)

    @property
    def ended(self) -> dict[str, Any] | None:
        """What ``result.toml`` says; None where the run has not ended."""
        return self._read(RESULT)

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            return read_toml(file)
        except BadFile as problem:
            raise BadFile(f"{problem}; put it back as the run wrote it, or choose another output folder") from None

    def begin(self, settings: Mapping[str, Any], machine: Mapping[str, str]) -> str | None:
        """Writes ``run.toml``; returns a sentence where the run goes on under other conditions than it began with."""
        notes = noted((self.held or {}).get("machine"), machine)
        content = {"identity": self.identity(settings), **settings, "machine": notes}
        atomic_write(self.folder / RUN_FILE, to_toml(content))
        return told(notes)

    def extend(self) -> None:
        """Takes the mark of an ended run away, for it trains on."""
        with sentences(self.folder / RESULT):
            (self.folder / RESULT).unlink(missing_ok=True)

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
            remove(file)

    def check_there(self) -> None:
        """Checks, before more is written, that the folder is still that of this run.

        Raises:
            BadFile: it was removed or moved.
        """
        if not is_run(self.folder):
            raise BadFile(
                f"{self.folder / RUN_FILE} is gone: the folder was removed or moved while the run was going on; put it "
                "back and give the same command again, which goes on from its last checkpoint"
            )

    def rewind(self, step: int, say: Say) -> list[float]:
        """Cuts the log behind ``step`` and returns the losses of the steps before, NaN where the log lacks one.

        A killed process may have logged steps that no checkpoint holds, and half a line.
        """
        found = read_log(self.log, step)
        for problem in found.problems if step else ():
            say(problem)
        atomic_write(self.log, "".join(f"{line}\n" for line in found.lines))
        return list(found.losses)

    def finish(self, losses: Sequence[float], memory: Mapping[str, int] | None = None) -> None:
        """Writes ``result.toml``, after which the run is finished.

        Args:
            losses: of each step. memory: what the run has taken, in bytes by name.
        """
        steps = len(losses)
        facts = {"steps": steps, "loss": final_loss(losses), "loss_is": loss_name(steps)}
        if memory:
            facts["memory"] = dict(memory)
        atomic_write(self.folder / RESULT, to_toml({"adapter": sha256(self.adapter), **facts}))
        checkpoint.remove_states(self.folder)

    def result(self, steps: int, say: Say, *, already: bool) -> Run:
        """Returns the finished run of so many steps, and says what of its log and measures is lost."""
        ended = self.ended or {}
        found = read_log(self.log, steps)
        for problem in found.problems if already else ():
            say(problem)
        checkpoint.remove_states(self.folder)  # of a process that was killed after it had ended
        loss = final_loss(found.losses) if found.lines else math.nan
        if math.isnan(loss) and isinstance(ended.get("loss"), float):
            loss = ended["loss"]
        measures = read_measures(self.folder, say if already else None)
        return Run(self.folder, self.adapter, self.report, found.losses, measures, already, loss)

    def identity(self, settings: Mapping[str, Any]) -> str:
        """Returns what tells this run's states from those of another.

        It is a hash of the settings that the run was begun with, its length left out; later versions may know more
        settings, so a run keeps the one that it has.
        """
        kept = (self.held or {}).get("identity")
        if isinstance(kept, str):
            return kept
        content = json.dumps(without_length(compared(settings)), sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
