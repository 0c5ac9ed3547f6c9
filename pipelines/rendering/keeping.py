"""Keeps what was drawn: pictures under their names, a line in the manifest for each attempt, and the count of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studio.atomic import atomic_write
from studio.errors import BadFile
from studio.pipelines.rendering.bench import Asked, Drawn
from studio.pipelines.rendering.finished import job_in
from studio.pipelines.rendering.job import Job
from studio.pipelines.rendering.listing import NotDone
from studio.pipelines.rendering.manifest import Manifest

__all__ = ["Keeper", "Rendered"]


@dataclass
class Rendered:
    """What came of a list.

    Attributes:
        folder: where the pictures are.
        pictures: the files of the jobs that are done, in the order of the list.
        drawn: how many of them were drawn now. found: how many were there, or drawn by others meanwhile.
        failures: what is not done, in the order of the list.
        notes: what was asked for and has no effect.
    """

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    drawn: int = 0
    found: int = 0
    failures: list[NotDone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Keeper:
    """Keeps what was drawn.

    Args:
        folder: where the pictures go. files: the name of every job's picture in it, by the job's place in the list.
        manifest: where it is noted.
        on_job: called with a job and None when it is done, and with the sentence why it is not in the end.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[int, str],
        manifest: Manifest,
        on_job: Callable[[Job | None, str | None], None] | None = None,
    ) -> None:
        self.folder, self.files, self.manifest = folder, files, manifest
        self.rendered = Rendered(folder)
        self._on_job = on_job or (lambda job, error: None)
        self._attempts: dict[int, int] = {}
        self._failed: dict[int, NotDone] = {}
        self._done: set[int] = set()

    def name(self, asked: Asked) -> str:
        """Returns by what a job is claimed: its file and its hash.

        Args:
            asked: the job and its hash.
        """
        return f"{self.files[asked[0].index]} {asked[1]}"

    def is_done(self, asked: Asked) -> bool:
        """Whether the picture is there, made by just this job.

        Args:
            asked: the job and its hash.
        """
        return job_in(self.folder / self.files[asked[0].index]) == asked[1]

    def begin(self, asked: Sequence[Asked], left: Sequence[Asked], lost: Iterable[NotDone]) -> None:
        """Counts what is done already, and notes what cannot be done.

        Args:
            asked: all jobs, each with its hash. left: those that are not done. lost: entries that are no jobs.

        Raises:
            BadFile: the manifest cannot be written.
        """
        waiting = {job.index for job, _ in left}
        there = [one for one in asked if one[0].index not in waiting]
        if there:
            self.manifest.found([self._entry(one) for one in there])
        for one in there:
            self.found(one)
        for entry in lost:
            self.manifest.add(index=entry.index, where=entry.where, outcome="failed", error=entry.error)
            self._failed[entry.index] = entry
            self._on_job(None, entry.error)

    def found(self, asked: Asked) -> None:
        """Counts a job that was done already.

        Args:
            asked: the job and its hash.
        """
        self.rendered.found += 1
        self._count(asked[0])

    def copy(self, asked: Asked, data: bytes) -> None:
        """Keeps a picture that was there under another name, where it is of the same format.

        Args:
            asked: the job and its hash. data: the bytes of its picture.

        Raises:
            BadFile: it cannot be written.
        """
        atomic_write(self.folder / self.files[asked[0].index], data)
        self.manifest.add(**self._entry(asked), outcome="copied")
        self.found(asked)

    def take(self, drawn: Drawn) -> bool:
        """Keeps what came of an attempt.

        Args:
            drawn: what came.

        Returns:
            Whether it is a picture.

        Raises:
            BadFile: it cannot be written; the message says how many are done.
        """
        job = drawn.job
        attempt = self._attempts[job.index] = self._attempts.get(job.index, 0) + 1
        common = {
            **self._entry((job, drawn.digest)), "attempt": attempt, "seconds": round(drawn.seconds, 3),
            "rows": drawn.rows or None,
        }  # fmt: skip
        if drawn.data is None:
            self.manifest.add(**common, outcome="failed", error=drawn.error)
            self._failed[job.index] = NotDone(job.index, job.where, drawn.error or "")
            return False
        try:
            atomic_write(self.folder / self.files[job.index], drawn.data)
            self.manifest.add(**common, outcome="done")
        except BadFile as problem:
            many = f"{len(self._done):,} of {len(self.files):,} pictures are done"
            raise BadFile(f"{problem} ({many}; the same command goes on from there)") from problem
        self.rendered.drawn += 1
        self.rendered.notes += [note for note in drawn.notes if note not in self.rendered.notes]
        self._count(job)
        return True

    def once_more(self, drawn: Drawn, retries: int) -> bool:
        """Whether a failed job shall be tried again; one that shall not is told.

        Args:
            drawn: what came of an attempt. retries: how often one is tried again.
        """
        if drawn.data is not None:
            return False
        if not drawn.hopeless and self._attempts[drawn.job.index] <= retries:
            return True
        self._on_job(drawn.job, drawn.error)
        return False

    def result(self) -> Rendered:
        """Returns what came of the list so far."""
        self.rendered.pictures = [self.folder / self.files[index] for index in sorted(self._done)]
        self.rendered.failures = [self._failed[index] for index in sorted(self._failed)]
        return self.rendered

    def _count(self, job: Job) -> None:
        self._failed.pop(job.index, None)
        self._done.add(job.index)
        self._on_job(job, None)

    def _entry(self, asked: Asked) -> dict[str, object]:
        job, digest = asked
        return {
            "index": job.index, "where": job.where, "file": self.files[job.index], "job": digest,
            "prompt": job.prompt, "seed": job.seed,
        }  # fmt: skip
