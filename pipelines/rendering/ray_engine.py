"""Draws a list on the machines of a Ray cluster: actors draw, this process alone writes.

An actor is a process with its own base; it gets jobs in parts that share adapters, and what an actor that died was at,
another draws. Base and adapters must be found from every machine by the same name. The number of threads is that of
this process, so that the bytes are those that it would draw itself.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from studio.packages import need
from studio.pipelines.rendering.bench import Asked, Bench, Drawn
from studio.pipelines.rendering.keeping import Keeper
from studio.pipelines.rendering.local import LEAST, MOST, in_order, parts
from studio.pipelines.rendering.setting import Setting

__all__ = ["draw_on_ray"]

TURNS = 4  # parts per actor, so that none waits long for the last


class Actor:
    """Draws the parts that it is handed; it lives in a process of its own.

    Args:
        setting: how, pickled. threads: of torch.
    """

    def __init__(self, setting: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self.bench = Bench(pickle.loads(setting))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draws parts.

        Args:
            batch: ``part``: each a pickled list of jobs with their hashes.
        """
        self.bench.forget()
        return {"drawn": [pickle.dumps(list(self.bench.draw(pickle.loads(part)))) for part in batch["part"]]}


def draw_on_ray(jobs: Sequence[Asked], *, setting: Setting, keeper: Keeper, retries: int, workers: int) -> None:
    """Draws jobs in rounds, those that failed again after the others.

    Args:
        jobs: what is not done yet, each with its hash.
        setting: how. keeper: keeps what was drawn. retries: how often what failed is tried again.
        workers: actors.

    Raises:
        MissingPackage: Ray is not installed.
        BadFile: a picture or the manifest cannot be written.
    """
    ray = need("ray", "lists that are drawn on a cluster", extra="ray")
    need("ray.data", "lists that are drawn on a cluster", extra="ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), include_dashboard=False if "RAY_ADDRESS" not in os.environ else None,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    try:
        left = [(job.placed(_absolute), digest) for job, digest in jobs]
        while left:
            again = []
            for drawn in _round(ray, left, setting, workers):
                keeper.take(drawn)
                if keeper.once_more(drawn, retries):
                    again.append((drawn.job, drawn.digest))
            left = again
    finally:
        if ours:
            ray.shutdown()


def _round(ray: Any, jobs: Sequence[Asked], setting: Setting, workers: int) -> Iterator[Drawn]:
    rows = setting.batch_size
    most = max(rows, LEAST, min(MOST, math.ceil(len(jobs) / (workers * TURNS) / rows) * rows))
    items = [{"part": pickle.dumps(part)} for part in parts(in_order(jobs), most)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    has_accelerator = setting.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor, batch_size=1, batch_format="numpy", concurrency=min(workers, len(items)), num_cpus=1,
        num_gpus=1 if has_accelerator else 0,
        fn_constructor_args=(pickle.dumps(setting), torch.get_num_threads()),
    )  # fmt: skip
    for row in made.iter_rows():
        yield from pickle.loads(row["drawn"])


def _absolute(text: str) -> str:
    """A path that means the same in another folder."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text
