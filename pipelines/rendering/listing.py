"""A list of jobs: every entry becomes the jobs that it describes, and one that is none spoils no other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.errors import BadConfig, BadFile, StudioError
from studio.families import BASES
from studio.limits import limit, too_many
from studio.pipelines.asking import Wanted
from studio.pipelines.prompting.wildcards import Wildcards
from studio.pipelines.rendering.axes import axes_of, combinations
from studio.pipelines.rendering.entries import Entry, Written, written
from studio.pipelines.rendering.job import Job, job_of
from studio.pipelines.rendering.use import adapters_of, check_adapters

__all__ = ["Listing", "NotDone", "read_jobs"]


@dataclass(frozen=True)
class NotDone:
    """An entry of a list that has no picture: its place in the list, where it stands, and why, in a sentence."""

    index: int
    where: str
    error: str


@dataclass(frozen=True)
class Listing:
    """A list that was read: its jobs, and the entries that are none."""

    jobs: list[Job] = field(default_factory=list)
    bad: list[NotDone] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)  # adapters that are declared for all jobs and that none needs

    @property
    def size(self) -> int:
        """How many entries and pictures it has so far."""
        return len(self.jobs) + len(self.bad)


def read_jobs(
    jobs: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    base: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    blend: Mapping[str, Any] | None = None,
) -> Listing:
    """Reads a list of jobs.

    Args:
        jobs: a file, a table with the keys of a YAML file, or one table per job.
        base: what draws the jobs that name no base themselves.
        adapters: files by name, besides those that the list declares.
        blend: what acts on the jobs that say nothing about it themselves.

    Raises:
        BadFile: the file is missing, too large, or cannot be read as a whole.
        BadConfig: it holds no jobs, more than a list may have, or something besides them that cannot be.

    Example:
        >>> found = read_jobs([{"prompt": "a dog", "seeds": "0..1"}, {"prompt": "a cat", "stesp": 3}], base="emoji")
        >>> [(job.prompt, job.seed) for job in found.jobs], found.bad[0].where
        ([('a dog', 0), ('a dog', 1)], 'job 1')
    """
    _wildcards.cache_clear()  # their files may have changed since the last list
    source = written(jobs)
    if not source.entries:
        raise BadConfig("the list holds no jobs; it needs one at least")
    own = {"base": None if base is None else _from_here(base), "blend": dict(blend) if blend else None}
    defaults = {**source.defaults, **{name: value for name, value in own.items() if value is not None}}
    here = {name: _from_here(file) for name, file in (adapters or {}).items()}
    declared = check_adapters({**check_adapters(source.adapters, "adapters"), **here}, "adapters")
    source = replace(source, defaults=defaults, adapters=declared)
    found = Listing()
    for entry in source.entries:
        _add(found, entry, source)
        if found.size > limit("jobs"):
            raise BadConfig(f"the list has {found.size:,} pictures or more; {too_many('jobs')}")
    needed = {name for job in found.jobs for name in job.adapters}
    found.idle.extend(name for name in declared if name not in needed and not found.bad)
    return found


def _from_here(text: str | Path) -> str:
    """A path that was not written in the list, so that it is not looked for beside it."""
    if str(text) in BASES:
        return str(text)
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else str(text)


def _add(found: Listing, entry: Entry, source: Written) -> None:
    """Adds an entry's jobs; what cannot be one is kept with its sentence."""

    def bad(error: object) -> None:
        found.bad.append(NotDone(found.size, entry.where, str(error)))

    if entry.error is not None:
        bad(entry.error)
        return
    try:
        values, own = _merged(entry, source)
        plain, axes = axes_of(values, entry.where)
    except StudioError as error:
        bad(error)
        return
    for fields in _guarded(combinations(plain, axes, entry.where), bad):
        try:
            found.jobs.append(_job(fields, found.size, entry, own, source.folder))
        except StudioError as error:
            bad(error)


def _job(fields: Mapping[str, Any], index: int, entry: Entry, adapters: Mapping[str, str], folder: Path) -> Job:
    """The job of a table of fields, its paths found and its choices made.

    Raises:
        StudioError: it is none; the message says where.
    """
    job = job_of(fields, index=index, where=entry.where)
    try:
        job = _placed(job, folder)
        wanted = Wanted(prompt=job.prompt, seed=job.seed, negative=job.negative, wildcards=job.wildcards)
        job = replace(job, resolved=wanted.settled(_wildcards).resolved)
    except StudioError as error:
        raise type(error)(f"{entry.where}: {error}") from None
    except OSError as error:  # too long a name
        raise BadFile(f"{entry.where}: {error.strerror}: {str(error.filename)[:80]}") from None
    return _placed(adapters_of(job, adapters), folder)


@functools.lru_cache(maxsize=64)
def _wildcards(folder: str | None) -> Wildcards:
    return Wildcards(folder)


def _guarded(made: Iterator[dict[str, Any]], bad: Callable[[object], None]) -> Iterator[dict[str, Any]]:
    try:
        yield from made
    except StudioError as error:
        bad(error)


def _merged(entry: Entry, source: Written) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry with the defaults behind it, and the adapters that it may name.

    Raises:
        BadConfig: it is no table, or its adapters or axes are none.
    """
    if not isinstance(entry.values, Mapping):
        raise BadConfig(f"{entry.where}: {repr(entry.values)[:80]} is no job; write fields and values")
    own = {name: value for name, value in entry.values.items() if value is not None}
    declared = check_adapters(own.pop("adapters", {}), f"{entry.where}: adapters")
    axes = own.pop("axes", {})
    if not isinstance(axes, Mapping):
        raise BadConfig(f"{entry.where}: axes={repr(axes)[:80]} is no table; write axes: {{steps: [10, 20]}}")
    said = _with_seeds({*own, *axes})
    grid = {name: many for name, many in source.axes.items() if name not in said}
    said |= _with_seeds(set(grid))
    behind = {name: value for name, value in source.defaults.items() if name not in said}
    grid |= dict(axes)
    return {**behind, **own, **({"axes": grid} if grid else {})}, {**source.adapters, **declared}


def _with_seeds(names: set[Any]) -> set[Any]:
    """Who says seed says seeds, and the other way round."""
    return names | ({"seed", "seeds"} if names & {"seed", "seeds"} else set())


def _placed(job: Job, folder: Path) -> Job:
    """The same job with its paths as they are found from here: those that exist beside the list are meant."""

    def place(text: str) -> str:
        beside = folder / Path(text).expanduser()
        try:
            return str(beside.absolute()) if beside.exists() else text
        except OSError:  # too long a name
            return text

    return job.placed(str if folder == Path() else place)
