"""Attack: valid adapter files of every format, damaged at random from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

import studio
from benchmarks.reliability._subject import Net, load_and_look, output, write_raw
from benchmarks.reliability.trial import Trial, attempt

__all__ = ["TITLE", "trials"]

TITLE: Final = "adapter files damaged at random"
SHORT: Final = 300
LONG: Final = 15_000
SEED: Final = 13
WORDS: Final = (
    b"0",
    b"-1",
    b"1e999",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"NaN",
    b"true",
    b"\x00",
    b"\xff",
    b"99999999999999999999",
)


def sources(folder: Path) -> list[Path]:
    """Writes adapters of several methods in every format that has them."""
    made = []
    configs = (
        studio.LoRA(rank=2, alpha=3.0, targets=("lin", "conv")),
        studio.DoRA(rank=2, targets=("lin", "conv")),
        studio.LoKr(rank=1, targets=("lin", "conv")),
        studio.LoHa(rank=2, targets=("lin",)),
        studio.IA3(targets=("out",)),
        studio.OFT(block_size=4, targets=("lin",)),
        studio.VeRA(rank=4, targets=("lin",)),
    )
    for config in configs:
        for format in ("diffusers", "kohya", "peft"):
            model = Net()
            studio.attach(model, config)
            with torch.no_grad():
                for tensor in studio.state(model).values():
                    tensor.add_(0.01)
            file = folder / f"{config.method}-{format}{'' if format == 'peft' else '.safetensors'}"
            try:
                made.append(studio.save(model, file, format=format))
            except studio.StudioError:  # the format has no such method
                continue
    return made


def sound(file: Path) -> Tensor:
    """What the model computes with an undamaged file."""
    model = Net()
    studio.load(model, file)
    return output(model)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Damages one file after the other.

    Args:
        folder: where they are made. long: as many as the page states.
    """
    draw = random.Random(SEED)
    files = sources(folder / "sound")
    wanted = {file: sound(file) for file in files}
    for number in range(LONG if long else SHORT):
        source = files[number % len(files)]
        parts = sorted(source.iterdir()) if source.is_dir() else [source]
        spoiled = draw.choice(parts)
        content, what = damaged(spoiled.read_bytes(), draw)
        place = folder / "spoiled" / (source.name if source.is_dir() else "")
        for part in parts:
            write_raw(place / part.name, content if part == spoiled else part.read_bytes())
        file = place if source.is_dir() else place / source.name
        yield attempt(f"{number}: {source.name}: {what}", partial(load_and_look, file, wanted[source]))


def damaged(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Returns bytes with one to three damages, and which."""
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice((flip, cut, word, swap, digits, grow))
        content = kind(content, draw) if content else b"\0"
        done.append(kind.__name__)
    return content, " ".join(done)


def place(content: bytes, draw: random.Random) -> int:
    """A place in a file, most often in its header."""
    return draw.randrange(len(content) if draw.random() < 0.2 else min(len(content), 3000))


def flip(content: bytes, draw: random.Random) -> bytes:
    """One bit is the other way round."""
    at = place(content, draw)
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """Some bytes are missing."""
    at = place(content, draw)
    return content[:at] + (b"" if draw.random() < 0.3 else content[at + draw.randrange(1, 40) :])


def word(content: bytes, draw: random.Random) -> bytes:
    """A word stands where none was."""
    at = place(content, draw)
    return content[:at] + draw.choice(WORDS) + content[at + draw.choice((0, 1, 4)) :]


def swap(content: bytes, draw: random.Random) -> bytes:
    """Two pieces of one length have changed places."""
    one, two = sorted((place(content, draw), place(content, draw)))
    size = min(draw.randrange(1, 30), two - one)
    parts = (content[:one], content[two : two + size], content[one + size : two], content[one : one + size])
    return b"".join(parts) + content[two + size :]


def digits(content: bytes, draw: random.Random) -> bytes:
    """A digit is another one."""
    found = [at for at in range(min(len(content), 3000)) if content[at : at + 1].isdigit()]
    if not found:
        return content
    at = draw.choice(found)
    return content[:at] + str(draw.randrange(10)).encode() + content[at + 1 :]


def grow(content: bytes, draw: random.Random) -> bytes:
    """Bytes are there twice."""
    at = place(content, draw)
    return content[:at] + content[at : at + draw.randrange(1, 200)] + content[at:]
