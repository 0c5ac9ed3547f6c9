"""Draws jobs: batches that halve when memory ends, and failures that stay alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final

from studio.adapters import block_weights
from studio.device import choose_device, choose_dtype, free_cache
from studio.errors import BadConfig, BadFile, Refused, StudioError, UsageError
from studio.pipelines.asking import Wanted
from studio.pipelines.image import ImagePipeline
from studio.pipelines.making import Made
from studio.pipelines.prompting.tags import parse_prompt
from studio.pipelines.remarks import Remark
from studio.pipelines.rendering.finished import data_of
from studio.pipelines.rendering.job import Job
from studio.pipelines.rendering.setting import Setting
from studio.pipelines.rendering.standing import Standing

__all__ = ["Bench", "Drawn"]

NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")
Asked = tuple[Job, str]  # a job and its hash


@dataclass(frozen=True)
class Drawn:
    """What came of one attempt at a job.

    Args:
        job: the job. digest: its hash.
        rows: pictures that were computed together. seconds: since the one before it was done.
        data: the bytes of the picture's file; None: it failed.
        error: why, in a sentence. hopeless: another attempt would end in the same way.
        notes: what was asked for and has no effect.
    """

    job: Job
    digest: str
    rows: int
    seconds: float
    data: bytes | None = None
    error: str | None = None
    hopeless: bool = False
    notes: tuple[str, ...] = ()


class Bench:
    """Draws jobs, on one base at a time.

    Args:
        setting: how.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._of: str | None = None
        self._standing: Standing | None = None
        self._rows: dict[Any, int] = {}  # by size in pixels: what there was memory for
        self._since = 0.0

    def pipe(self, base: str) -> ImagePipeline:
        """Returns the pipeline of a base; that of another base goes.

        Args:
            base: a name, a path, or a hub id.

        Raises:
            UsageError: it cannot be opened.
        """
        if self._standing is None or self._of != base:
            self._standing = None  # before the next takes memory
            setting, place = self.setting, choose_device(self.setting.device)
            auto = setting.dtype in (None, "auto")
            pipe = ImagePipeline.open(
                base, device=place, dtype="auto" if auto else choose_dtype(setting.dtype, place).dtype,
                config_of=setting.config_of, offline=setting.offline, **setting.saving,
            )  # fmt: skip
            self._standing = Standing(pipe, allow_partial=setting.allow_partial, pickled=setting.pickled)
            self._of = base
        return self._standing.pipe

    def forget(self) -> None:
        """Lets what could not be loaded be tried again."""
        if self._standing is not None:
            self._standing.forget()

    def draw(self, jobs: Sequence[Asked]) -> Iterator[Drawn]:
        """Draws jobs of one base and one size, in which a name of an adapter means one file.

        Args:
            jobs: the jobs, each with its hash.

        Yields:
            What came of each of them, in an order of its own.
        """
        self._since = time.monotonic()
        ready, bad = list[Asked](), dict[str, Exception]()
        try:
            self.pipe(jobs[0][0].base)
            assert self._standing is not None, "it is open"
            bad = self._standing.need(_files(jobs))
        except Exception as error:
            problem = error.with_traceback(None)
            yield from [self._failed(asked, problem, 0) for asked in jobs]
            return
        for asked in jobs:
            broken = next((bad[name] for name in asked[0].adapters if name in bad), None)
            if broken is None:
                ready.append(asked)
            else:
                yield self._failed(asked, broken, 0)
        for part in self._standing.by_words(ready, lambda asked: asked[0].adapters):
            self._standing.need(_files(part))  # a learned word is one for the jobs alone that ask for it
            yield from self._together(part)

    def _together(self, jobs: Sequence[Asked]) -> Iterator[Drawn]:
        """Draws jobs in batches; when something fails, those that are left in smaller parts, until it is alone."""
        if not jobs:
            return
        size = (jobs[0][0].width, jobs[0][0].height)
        rows = self._rows.get(size, self.setting.batch_size)
        left = dict(enumerate(jobs))
        problem: Exception | None = None
        try:
            made, notes = self._begin(jobs, rows)
            for one in made:
                drawn = self._done(left[one.index], one, rows, notes)
                del left[one.index]
                yield drawn
        except Exception as error:
            problem = error.with_traceback(None)  # whose frames hold what fills the memory
        if problem is None:
            return
        rest = list(left.values())
        if _no_memory(problem):
            free_cache(choose_device(self.setting.device))
            if rows > 1:
                self._rows[size] = rows // 2
                yield from self._together(rest)
                return
        if len(rest) == 1:
            yield self._failed(rest[0], problem, rows)
            return
        for part in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            yield from self._together(part)

    def _begin(self, jobs: Sequence[Asked], rows: int) -> tuple[Iterator[Made], tuple[str, ...]]:
        assert self._standing is not None, "it is open"
        pipe = self._standing.pipe
        wanted = [_wanted(pipe, job) for job, _ in jobs]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", Remark)
            made = pipe.make(wanted, batch_size=rows)
        for other in said:
            if not issubclass(other.category, Remark):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        return made, tuple(str(one.message) for one in said if issubclass(one.category, Remark))

    def _done(self, asked: Asked, made: Made, rows: int, notes: tuple[str, ...]) -> Drawn:
        job, digest = asked
        return Drawn(
            job, digest, rows, self._elapsed(), data=data_of(made.image, digest, self.setting.kind), notes=notes
        )

    def _failed(self, asked: Asked, error: Exception, rows: int) -> Drawn:
        hopeless = isinstance(error, (UsageError, Refused)) and not isinstance(error, BadFile)
        return Drawn(*asked, rows, self._elapsed(), error=_sentence(error), hopeless=hopeless)

    def _elapsed(self) -> float:
        before, self._since = self._since, time.monotonic()
        return self._since - before


def _wanted(pipe: ImagePipeline, job: Job) -> Wanted:
    """What a job asks the pipeline for; learned words in its blend are there, and have no strength."""
    family = pipe.base.family

    def strength(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        tag = parse_prompt(
            f"x <{name}:{value}>", [name], denoiser=family.denoiser, encoders=family.readers,
            blocks=partial(block_weights, pipe.carrier),
        )  # fmt: skip
        return (tag.blend or {})[name]

    said = {field.name: getattr(job, field.name) for field in fields(Wanted) if field.name != "blend"}
    words = {name: value for name, value in job.blend.items() if name in pipe.embeddings and name not in pipe.adapters}
    weighed = next((name for name, value in words.items() if value != 1.0), None)
    if weighed is not None:
        raise BadConfig(
            f"{weighed!r} is learned words, which have no strength: they act where a prompt has them; a word counts "
            "less in a prompt as (word:0.8)"
        )
    return Wanted(
        blend={name: strength(name, value) for name, value in job.blend.items() if name not in words}, **said
    )  # fmt: skip


def _files(jobs: Sequence[Asked]) -> dict[str, str]:
    """The files of the adapters that jobs need, by name."""
    return {name: file for job, _ in jobs for name, file in job.adapters.items()}


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


def _sentence(error: Exception) -> str:
    if isinstance(error, StudioError):
        return str(error)
    if _no_memory(error):
        return "there is not enough memory for it, even by itself: take a smaller size, or dtype bf16"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
