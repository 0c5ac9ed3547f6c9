"""Draws a list in this process, and shares it with others that draw the same into the same folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from studio.pipelines.rendering.bench import Asked, Bench
from studio.pipelines.rendering.claims import Claims
from studio.pipelines.rendering.keeping import Keeper

__all__ = ["draw_here", "in_order", "parts"]

BATCHES: Final = 4
"""Batches that are claimed at a time: more fill them better, fewer share better."""
LEAST: Final = 8
MOST: Final = 128
"""Pictures that are claimed at a time."""
WAIT: Final = 0.2
LONGEST: Final = 2.0
"""Seconds between two looks at what others are at: at first, and in the end."""


def draw_here(jobs: Sequence[Asked], *, bench: Bench, claims: Claims, keeper: Keeper, retries: int) -> None:
    """Draws jobs in rounds; what others are at is waited for, and drawn here if they die over it.

    Args:
        jobs: what is not done yet, each with its hash.
        bench: draws. claims: who does which. keeper: keeps what was drawn.
        retries: how often what failed is tried again, after the others.

    Raises:
        BadFile: a picture, a claim or the manifest cannot be written.
    """
    rows = bench.setting.batch_size
    most = max(rows, min(max(BATCHES * rows, LEAST), MOST))
    left, wait = list(jobs), WAIT
    while left:
        elsewhere, again = list[Asked](), list[Asked]()
        for part in parts(_claimed(in_order(left), claims, keeper, elsewhere), most):
            for drawn in bench.draw(part):
                done = keeper.take(drawn)
                claims.give(keeper.name((drawn.job, drawn.digest)), done=done)
                if keeper.once_more(drawn, retries):
                    again.append((drawn.job, drawn.digest))
        bench.forget()
        wait = WAIT if len(again) + len(elsewhere) < len(left) else min(2 * wait, LONGEST)
        left = again + elsewhere
        if elsewhere:
            time.sleep(wait)


def _claimed(jobs: Iterable[Asked], claims: Claims, keeper: Keeper, elsewhere: list[Asked]) -> Iterator[Asked]:
    """Yields the jobs that are ours now and not done."""
    for asked in jobs:
        name = keeper.name(asked)
        if not claims.take(name):
            elsewhere.append(asked)
        elif keeper.is_done(asked):
            claims.give(name, done=True)
            keeper.found(asked)
        else:
            yield asked


def in_order(jobs: Iterable[Asked]) -> list[Asked]:
    """Returns jobs with those beside each other that can share a base, adapters and a batch.

    Args:
        jobs: the jobs, each with its hash.
    """

    def key(asked: Asked) -> tuple[Any, ...]:
        job = asked[0]
        together = (job.steps or 0, job.guidance or 0.0, job.embedded_guidance or 0.0, job.scheduler or "")
        return (*_alike(asked), tuple(job.adapters.items()), *together, len(job.prompt.split()), job.index)

    return sorted(jobs, key=key)


def parts(jobs: Iterable[Asked], most: int) -> Iterator[list[Asked]]:
    """Yields jobs in the parts that :meth:`Bench.draw` takes: of one base and one size, without two files of one name.

    Args:
        jobs: in order. most: jobs in a part.
    """
    part, files = list[Asked](), dict[str, str]()
    for asked in jobs:
        other = any(files.get(name, file) != file for name, file in asked[0].adapters.items())
        if part and (other or len(part) == most or _alike(part[0]) != _alike(asked)):
            yield part
            part, files = [], {}
        part.append(asked)
        files.update(asked[0].adapters)
    if part:
        yield part


def _alike(asked: Asked) -> tuple[Any, ...]:
    return (asked[0].base, asked[0].width or 0, asked[0].height or 0)
