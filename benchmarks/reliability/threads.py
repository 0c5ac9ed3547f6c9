"""Threads: four of them on one pipeline, each with a blend of its own; every picture must be the one of its blend."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

import studio
from benchmarks.reliability.trial import Trial, attempt
from studio.pipelines import ImagePipeline

TITLE: Final = "threads on one pipeline"
BLENDS: Final[tuple[Any, ...]] = ({"a": 1.0}, {"b": 1.0}, {}, None)
STANDING: Final = {"a": 0.5, "b": 0.0}


def opened() -> ImagePipeline:
    """The embedded base with two adapters that act."""
    pipe = ImagePipeline.open("emoji")
    for seed, name in enumerate("ab"):
        studio.attach(pipe.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in studio.state(pipe.pipe, name).values():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=draw)).requires_grad_(False)
    pipe.blend({"a": STANDING["a"]})
    return pipe


def drawn(pipe: ImagePipeline, thread: int, seed: int) -> bytes:
    """The pixels of one picture with the blend of a thread."""
    return pipe.generate("tiger", blend=BLENDS[thread], seeds=[seed], steps=2)[0].tobytes()


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Draws with four threads at once, 200 pictures or 12, and compares each with the one that is drawn alone."""
    pipe, rounds = opened(), 50 if long else 3
    wanted = {(thread, seed): drawn(pipe, thread, seed) for thread in range(4) for seed in range(3)}

    def work(thread: int) -> list[bytes]:
        return [drawn(pipe, thread, turn % 3) for turn in range(rounds)]

    found: list[list[bytes]] = []

    def together() -> str:
        with ThreadPoolExecutor(4) as pool:
            found.extend(pool.map(work, range(4)))
        standing = {name: info.strength for name, info in pipe.adapters.items()}
        return "" if standing == STANDING else f"the standing blend is {standing} afterwards"

    whole = attempt(f"{4 * rounds} pictures by four threads", together)
    yield Trial(whole.name, whole.fault if "hung" not in whole.fault and "it took" not in whole.fault else "", 0.0, 0)
    for thread, pictures in enumerate(found):
        for turn, picture in enumerate(pictures):
            right = picture == wanted[(thread, turn % 3)]
            fault = "" if right else "the picture is of another blend"
            yield Trial(f"thread {thread}, picture {turn}", fault, whole.seconds / (4 * rounds), whole.memory)
