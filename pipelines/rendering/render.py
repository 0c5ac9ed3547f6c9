"""``render``: a list of jobs in, a folder of pictures out; the same call again does what is left."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from studio.atomic import sentences
from studio.config import own_number
from studio.errors import BadConfig, BadFile, StudioError, UnknownName, nearest
from studio.given import given_path
from studio.pipelines.rendering.bench import Asked, Bench
from studio.pipelines.rendering.claims import joined
from studio.pipelines.rendering.copying import copied
from studio.pipelines.rendering.finished import job_in
from studio.pipelines.rendering.identity import Known, digest_of
from studio.pipelines.rendering.job import Job
from studio.pipelines.rendering.keeping import Keeper, Rendered
from studio.pipelines.rendering.listing import Listing, NotDone, read_jobs
from studio.pipelines.rendering.local import draw_here
from studio.pipelines.rendering.manifest import Manifest
from studio.pipelines.rendering.names import NAME, kind_of, named
from studio.pipelines.rendering.setting import Setting

__all__ = ["ENGINES", "render"]

ENGINES: Final = ("local", "ray")
HIDDEN: Final = ".render"
"""The folder beside the pictures in which claims and hashes are kept."""


def render(
    jobs: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    output: str | Path = "out",
    *,
    base: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    blend: Mapping[str, Any] | None = None,
    name: str = NAME,
    batch_size: int = 1,
    retries: int = 1,
    engine: str = "local",
    workers: int = 2,
    device: str | None = None,
    dtype: str | None = None,
    config_of: str | None = None,
    allow_partial: bool = False,
    pickled: bool = False,
    offline: bool = False,
    saving: Mapping[str, Any] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_job: Callable[[Job | None, str | None], None] | None = None,
) -> Rendered:
    """Draws a list of jobs into a folder; what is done is skipped, what changed is drawn anew, failures stay alone.

    Any number of processes may draw the same list into the same folder at the same time; each job is done once.

    Args:
        jobs: a YAML, CSV or JSONL file, a table with the keys of a YAML file, or one table per job.
        output: the folder of the pictures and of ``manifest.jsonl``, which says what happened to each job.
        base: what draws the jobs that name no base.
        adapters: files by name, besides those that the list declares.
        blend: what acts on the jobs that say nothing about it.
        name: the pattern of the pictures' names (:mod:`studio.pipelines.rendering.names`).
        batch_size: pictures that are computed together; halved where memory ends.
        retries: how often a job that failed is tried again, after the others.
        engine: ``"local"``: in this process; ``"ray"``: on a Ray cluster.
        workers: processes of a cluster.
        device: where to compute; None: the best there is.
        dtype: the base's number format. config_of: whose configs a checkpoint of one file is opened with.
        allow_partial: load what fits of an adapter. pickled: read ``.pt`` and ``.bin`` adapters too.
        offline: never ask the hub.
        saving: what saves memory, as arguments of :meth:`ImagePipeline.open`.
        on_start: called with the number of jobs.
        on_job: called with a job (None for an entry that is none), and None when it is done or why it is not.

    Returns:
        What came of it; jobs that failed are in ``.failures``, and nothing is raised for them.

    Raises:
        BadFile: the list cannot be read, or something cannot be written; a picture that is there was not drawn here.
        BadConfig: there is no job in it, two have one name, or a number that cannot be.
        UnknownName: no such engine, or a field of ``name`` that is none.
        DoesNotFit: another list is being drawn into the folder.
        MissingPackage: the engine is not installed.

    Example:
        >>> import tempfile
        >>> folder, jobs = tempfile.mkdtemp(), [{"prompt": "tiger", "steps": 2, "seeds": "0..1"}]
        >>> render(jobs, folder, base="emoji", device="cpu").drawn
        2
        >>> again = render(jobs, folder, base="emoji", device="cpu")
        >>> again.drawn, again.found, [picture.name for picture in again.pictures]
        (0, 2, ['00000.png', '00001.png'])
    """
    _check(engine, workers, retries)
    setting = Setting(
        batch_size=batch_size, device=device, dtype=dtype, config_of=config_of, allow_partial=allow_partial,
        pickled=pickled, offline=offline, saving=saving or {}, kind=kind_of(str(name)),
    )  # fmt: skip
    listing, folder = read_jobs(jobs, base=base, adapters=adapters, blend=blend), given_path(output, "output")
    bench, hidden = Bench(setting), folder / HIDDEN
    with sentences(hidden / "claims"):
        hidden.mkdir(parents=True, exist_ok=True)
    asked, unfit = _identified(listing, Known(hidden / "known.json"), bench)
    files = dict(zip((job.index for job, _ in asked), named(name, *_columns(asked)), strict=True))
    keeper = Keeper(folder, files, Manifest(folder / "manifest.jsonl", hidden / "manifest.lock"), on_job)
    left = [one for one in asked if not keeper.is_done(one)]
    _check_places(folder, [files[job.index] for job, _ in left])
    if on_start is not None:
        on_start(len(listing.jobs) + len(listing.bad))
    digest = _list_digest(keeper, asked) + (secrets.token_hex(4) if engine == "ray" else "")
    keeper.rendered.notes += [f"no job of the list needs the adapter {idle!r}" for idle in listing.idle]
    with joined(hidden, folder, digest) as claims:
        keeper.begin(asked, left, [*unfit, *listing.bad])
        left = copied(left, keeper, hidden)
        if engine == "ray":
            from studio.pipelines.rendering.ray_engine import draw_on_ray

            draw_on_ray(left, setting=setting, keeper=keeper, retries=retries, workers=workers)
        else:
            draw_here(left, bench=bench, claims=claims, keeper=keeper, retries=retries)
    return keeper.result()


def _check(engine: Any, workers: Any, retries: Any) -> None:
    if engine not in ENGINES:
        close = nearest(str(engine), ENGINES, 1)[0]
        raise UnknownName(f"no engine is called {engine!r}; did you mean {close!r}? ({', '.join(ENGINES)})")
    for name, value, least in (("workers", own_number(workers), 1), ("retries", own_number(retries), 0)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10_000:
            raise BadConfig(f"{name}={value!r}: give a whole number from {least} to 10,000")


def _identified(listing: Listing, known: Known, bench: Bench) -> tuple[list[Asked], list[NotDone]]:
    """Every job with its hash, and those that have none because something that they need is not there.

    Raises:
        BadConfig: none has one.
    """
    asked: list[Asked] = []
    unfit: list[NotDone] = []
    bases: dict[str, str | Exception] = {}
    for job in listing.jobs:
        try:
            asked.append((job, digest_of(job, _base_hash(job.base, bases, known, bench), known, bench.setting)))
        except StudioError as error:
            unfit.append(NotDone(job.index, job.where, f"{job.where}: {error}"))
    if not asked:
        raise BadConfig(f"no job of the list can be done: {[*unfit, *listing.bad][0].error}")
    known.keep()
    return asked, unfit


def _base_hash(base: str, bases: dict[str, str | Exception], known: Known, bench: Bench) -> str:
    """The hash of a base; it is opened where it was not before, or has changed."""
    if base not in bases:
        try:
            bases[base] = known.base(base) or known.keep_base(base, bench.pipe(base).base)
        except StudioError as error:
            bases[base] = error.with_traceback(None)
    found = bases[base]
    if isinstance(found, Exception):
        raise found
    return found


def _columns(asked: Sequence[Asked]) -> tuple[list[Job], list[str]]:
    return [job for job, _ in asked], [digest for _, digest in asked]


def _list_digest(keeper: Keeper, asked: Sequence[Asked]) -> str:
    return hashlib.sha256("\n".join(sorted(map(keeper.name, asked))).encode()).hexdigest()


def _check_places(folder: Path, files: Sequence[str]) -> None:
    """Checks that pictures may be written there, before the first is drawn.

    Raises:
        BadFile: one would lie outside the folder, or take the place of what was not drawn here.
    """
    inside = folder.resolve()
    for parent in {(folder / file).parent for file in files}:
        if not parent.resolve().is_relative_to(inside):
            raise BadFile(f"{parent} is a link that leads out of {folder}: remove it, or choose another name")
    for file in files:
        place = folder / file
        if place.exists() and job_in(place, whole=False) is None:
            raise BadFile(f"{place} is there already and was not drawn by a job: remove it, or choose another folder")
