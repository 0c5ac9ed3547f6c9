"""Damaged states: bits turned, bytes lost, moved or added in a newest checkpoint; it must be passed over aloud."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch

from benchmarks.reliability.trial import Trial, attempt
from studio.trainers.loop import checkpoint

TITLE: Final = "damaged states of runs"
RUN: Final = "run"


def state_of(step: int) -> checkpoint.Checkpoint:
    """A checkpoint whose numbers tell its step."""
    return checkpoint.Checkpoint(
        step=step, tensors={"layer.down": torch.full((4, 8), float(step)), "layer.up": torch.randn(8, 4)}, scratch={},
        average={"layer.down": torch.zeros(4, 8)}, optimizer={"state": {0: {"step": step}}, "param_groups": []},
    )  # fmt: skip


def turned(content: bytes, draw: random.Random) -> bytes:
    """One bit is another."""
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """A stretch is zero, as after a lost page."""
    first = draw.randrange(len(content))
    last = min(len(content), first + draw.choice((1, 16, 512, 4096)))
    return content[:first] + bytes(last - first) + content[last:]


def longer(content: bytes, draw: random.Random) -> bytes:
    """Something stands behind it."""
    return content + draw.randbytes(draw.choice((1, 10, 1000)))


def swapped(content: bytes, draw: random.Random) -> bytes:
    """Two halves have changed places."""
    place = draw.randrange(1, len(content))
    return content[place:] + content[:place]


def noise(content: bytes, draw: random.Random) -> bytes:
    """It is anything but a state."""
    return draw.randbytes(draw.choice((0, 1, 100, len(content))))


DAMAGES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    turned,
    turned,
    cut,
    zeroed,
    longer,
    swapped,
    noise,
)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Damages the newest of two checkpoints 1,500 times, or 100."""
    for step in (2, 4):
        checkpoint.write(folder, state_of(step), RUN)
    file = folder / "checkpoints" / "step-000004.state"
    whole, draw = file.read_bytes(), random.Random(0)
    for number in range(1500 if long else 100):
        damage = DAMAGES[number % len(DAMAGES)]
        content = damage(whole, draw)
        file.write_bytes(content)
        yield attempt(f"{damage.__name__}, {number}", lambda content=content: _passed_over(folder, content == whole))
    file.write_bytes(whole)
    yield attempt("undamaged", lambda: _passed_over(folder, True))


def _passed_over(folder: Path, whole: bool) -> str:
    said: list[str] = []
    found = checkpoint.newest(folder, RUN, said.append)
    if found is None or found.step != (4 if whole else 2):
        return f"step {None if found is None else found.step} was taken"
    if not bool((found.tensors["layer.down"] == found.step).all()):
        return "other numbers were read"
    return "" if whole or said else "nothing was said"
