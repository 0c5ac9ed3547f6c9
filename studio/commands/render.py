"""``studio render``: a list of jobs becomes a folder of pictures; the same command again does what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.options import (
    adapter_option,
    config_option,
    example,
    memory_options,
    output_options,
    pipeline_options,
)
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig, NotAllDone, StudioError

if TYPE_CHECKING:
    from studio.pipelines.rendering.keeping import Rendered

__all__ = ["render"]

SHOWN: Final = 5
"""Failures that are named; the manifest has them all."""


@click.command(
    short_help="Draw a list of jobs; resumes by itself.",
    epilog=example(
        "studio render jobs.yaml -o out",
        'studio render jobs.csv --base emoji --adapter robot=runs/robot --name "{prompt:40}_{seed}_{index:05}"',
        "studio render jobs.jsonl --base emoji --batch-size 8 -o out",
    ),
)
@click.argument("jobs", type=click.Path(path_type=Path))
@click.option("--base", metavar="BASE", help="What draws the jobs that name no base themselves.")
@adapter_option
@click.option(
    "--name",
    default="{index:05}",
    show_default=True,
    metavar="PATTERN",
    help="What the pictures are called, from the fields of their jobs; a / makes folders.",
)
@click.option(
    "--batch-size",
    type=int,
    metavar="N",
    default=1,
    show_default=True,
    help="Pictures that are computed together; halved where memory ends.",
)
@click.option(
    "--retries",
    type=int,
    metavar="N",
    default=1,
    show_default=True,
    help="How often a job that failed is tried again, after the others.",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|ray",
    help="Draw in this process (start as many as you like on one list), or on a Ray cluster.",
)
@click.option("--workers", type=int, metavar="N", default=2, show_default=True, help="Processes on a Ray cluster.")
@config_option
@pipeline_options
@memory_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    default="out",
    show_default=True,
    help="Where the pictures go, and manifest.jsonl, which tells what happened to each job.",
)
@output_options
def render(
    jobs: Path,
    base: str | None,
    adapters: tuple[AdapterWord, ...],
    name: str,
    batch_size: int,
    retries: int,
    engine: str,
    workers: int,
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw a list of jobs into a folder.

    JOBS is a YAML, CSV or JSONL file; a job is a prompt with anything that studio generate takes, and axes make grids
    of jobs (docs/render.md has one of each). What is done is skipped and what changed is drawn anew, so the same
    command goes on after Ctrl-C, a full disk or a crash, and several of them share one list. A job that fails stops no
    other: the exit code is 3 when some are not done in the end, and 2 when nothing could begin.
    """
    from studio.pipelines import render as draw

    show, begun = Show(as_json, quiet), time.monotonic()
    files, blend = _adapters(adapters)
    with _progress(show) as (start, advance):
        done = draw(
            jobs, output, base=base, adapters=files, blend=blend, name=name, batch_size=batch_size, retries=retries,
            engine=engine, workers=workers, device=device, dtype=dtype, config_of=config_of,
            allow_partial=allow_partial, pickled=pickled, saving=click.get_current_context().obj, on_start=start,
            on_job=advance,
        )  # fmt: skip
    _say(show, done, time.monotonic() - begun)


def _adapters(words: Sequence[AdapterWord]) -> tuple[dict[str, Path], dict[str, Any]]:
    """Files and strengths by name: the one that is given, else the one that the file records, else its own.

    Raises:
        BadConfig: two have one name.
    """
    from studio.pipelines.naming import free_name

    files: dict[str, Path] = {}
    strengths: dict[str, Any] = {}
    for word in words:
        name = word.name or free_name(word.file, _recorded(word.file), files)
        if name in files:
            raise BadConfig(f"two adapters are called {name!r}: name one of them, --adapter other={word.file}")
        files[name], strengths[name] = word.file, word.strength if word.plain else word.said
    return files, strengths


def _recorded(file: Path) -> str:
    """The name that an adapter's file records; of one that cannot be read, the jobs that need it will say why."""
    from studio.files import inspect
    from studio.pipelines.naming import adapter_file

    try:
        return inspect(adapter_file(file)).name
    except StudioError:
        return ""


def _say(show: Show, done: Rendered, seconds: float) -> None:
    """Says what came of it.

    Raises:
        NotAllDone: some jobs are not done.
    """
    for note in done.notes:
        show.note(note)
    for one in done.failures[1:SHOWN]:  # the first is in the last sentence
        show.note(one.error)
    manifest, lost = done.folder / "manifest.jsonl", len(done.failures)
    if done.pictures:
        there = f", {done.found:,} of them there already" if done.found else ""
        many = "picture" if len(done.pictures) == 1 else "pictures"
        show.say(f"{len(done.pictures):,} {many}{there}: {done.folder} ({seconds:.0f} s)")
    show.result({
        "output": done.folder, "manifest": manifest, "drawn": done.drawn, "found": done.found, "seconds": seconds,
        "pictures": done.pictures, "failures": [vars(one) for one in done.failures],
    })  # fmt: skip
    if lost:
        total, are = lost + len(done.pictures), "is" if lost == 1 else "are"
        raise NotAllDone(
            f"{lost:,} of {total:,} jobs {are} not done: {done.failures[0].error} "
            f"({manifest} tells each; mend them, and the same command draws what is left)"
        )


@contextmanager
def _progress(show: Show) -> Iterator[tuple[Callable[[int], None], Callable[[Any, str | None], None]]]:
    """Counts jobs, with a bar on stderr where that is a terminal, and says how far it came when it is interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    count = {"jobs": 0, "done": 0, "failed": 0}
    seen = show.talks and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not seen) as bar:
        task = bar.add_task("looking", total=None)

        def start(jobs: int) -> None:
            count["jobs"] = jobs
            bar.update(task, total=jobs, description="drawing")

        def advance(job: Any, error: str | None) -> None:
            count["failed" if error else "done"] += 1
            failed = f", {count['failed']:,} failed" if count["failed"] else ""
            bar.update(task, advance=1, description=f"drawing{failed}")

        try:
            yield start, advance
        except KeyboardInterrupt:
            show.tell(f"{count['done']:,} of {count['jobs']:,} jobs are done; the same command goes on from there")
            raise
