"""Draws a list on the machines of a Ray cluster: actors draw, this process alone writes.

An actor is a process with its own base; it gets jobs in parts that share adapters, and what an actor that died was at,
another draws. Base and adapters must be found from every machine by the same name. The number of threads is that of
this process, so that the bytes are those that it would draw itself. Pickled is only what this process and its own
actors hand each other, as Ray does with all arguments; no file is ever read that way.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
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
        _connect(ray)
    try:
        left = [(job.placed(_absolute), digest) for job, digest in jobs]
        while left:
            again = []
            for drawn in _round(ray, left, setting, min(workers, _room(ray, setting))):
                keeper.take(drawn)
                if keeper.once_more(drawn, retries):
                    again.append((drawn.job, drawn.digest))
            left = again
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    """Joins the cluster of ``RAY_ADDRESS``, or begins one on this machine, without a word of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it asks the network otherwise
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    elsewhere = "RAY_ADDRESS" in os.environ
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if elsewhere else {"include_dashboard": False}))


def _room(ray: Any, setting: Setting) -> int:
    """How many actors the cluster has room for, at least 1."""
    there = ray.cluster_resources()
    return max(1, int(there["GPU"] if _on_accelerators(there, setting) else there.get("CPU", 1)))


def _on_accelerators(there: Mapping[str, float], setting: Setting) -> bool:
    return setting.device != "cpu" and there.get("GPU", 0) >= 1


def _round(ray: Any, jobs: Sequence[Asked], setting: Setting, workers: int) -> Iterator[Drawn]:
    data = ray.data
    rows = setting.batch_size
    most = max(rows, LEAST, min(MOST, math.ceil(len(jobs) / (workers * TURNS) / rows) * rows))
    items = [{"part": pickle.dumps(part)} for part in parts(in_order(jobs), most)]
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    made = data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor, batch_size=1, batch_format="numpy", compute=data.ActorPoolStrategy(size=min(workers, len(items))),
        num_cpus=1, num_gpus=int(_on_accelerators(ray.cluster_resources(), setting)),
        fn_constructor_args=(pickle.dumps(setting), torch.get_num_threads()),
    )  # fmt: skip
    for row in made.iter_rows():
        yield from pickle.loads(row["drawn"])


def _absolute(text: str) -> str:
    """A path that means the same in another folder."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text
