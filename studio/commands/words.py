"""What stands on a command line besides plain words and numbers: seeds, sizes, adapters with a strength."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import click

from studio.limits import limit, too_many

__all__ = ["ADAPTER", "HELD_OUT", "SEEDS", "SIZE", "AdapterWord"]

DIGITS = 19  # of the largest seed, 2**63 - 1


@dataclass(frozen=True)
class AdapterWord:
    """An adapter as named on the command line: file, strength, and a name where one was given.

    Args:
        file: its file. strength: a number. name: what tags call it; None: as the file says.
        schedule: points (progress, strength) in place of the number, where it changes while a picture is drawn.
        blocks: how much of it acts where, as :func:`studio.block_weights` reads it; None: all alike.
    """

    file: Path
    strength: float = 1.0
    name: str | None = None
    schedule: tuple[tuple[float, float], ...] | None = None
    blocks: str | None = None

    @property
    def plain(self) -> bool:
        """Whether its strength is one number."""
        return self.schedule is None and self.blocks is None

    @property
    def said(self) -> str:
        """Its strength as it is written."""
        number = f"{self.strength:g}"
        if self.schedule is not None:
            number = ",".join(f"{strength:g}@{place:g}" for place, strength in self.schedule)
        return number if self.blocks is None else f"{number}:lbw={self.blocks}"


class Seeds(click.ParamType):
    """Seeds: ``3``, ``0..7`` (the last one included), ``0,3,5``, and mixtures of them."""

    name = "seeds"

    def convert(
        self, value: str | tuple[int, ...], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """Reads seeds.

        Example:
            >>> SEEDS("0..3,8")
            (0, 1, 2, 3, 8)
        """
        if isinstance(value, tuple):
            return value
        seeds: list[int] = []
        for part in value.split(","):
            found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
            if not found:
                problem = f"{value!r} is not of the form 0..7, 0,3,5 or 4 (whole numbers from 0 on)"
                self.fail(problem, parameter, context)
            if max(len(found[1]), len(found[2] or "")) > DIGITS:
                self.fail(f"{value[:30]!r}... has a number of more than {DIGITS} digits", parameter, context)
            first = int(found[1])
            last = int(found[2]) if found[2] else first
            if last < first:
                self.fail(f"{part.strip()!r} runs backwards; write {last}..{first}", parameter, context)
            if len(seeds) + last - first >= limit("seeds"):
                many = len(seeds) + last - first + 1
                self.fail(f"{part.strip()!r} makes {many:,} seeds; give {too_many('seeds')}", parameter, context)
            seeds += range(first, last + 1)
        twice = next((seed for seed, times in Counter(seeds).items() if times > 1), None)
        if twice is not None:
            self.fail(f"{value!r} has the seed {twice} twice", parameter, context)
        return tuple(seeds)


class Size(click.ParamType):
    """Width and height in pixels: ``512x768``, or ``512`` for a square."""

    name = "WxH"

    def convert(
        self, value: str | tuple[int, int], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int]:
        """Reads a size.

        Example:
            >>> SIZE("512x768"), SIZE("64")
            ((512, 768), (64, 64))
        """
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*(\d+)\s*(?:[xX×]\s*(\d+)\s*)?", value)
        if found and max(len(found[1]), len(found[2] or "")) > DIGITS:
            self.fail(f"{value[:30]!r}... has a number of more than {DIGITS} digits", parameter, context)
        if not found or not int(found[1]) or (found[2] is not None and not int(found[2])):
            self.fail(f"{value!r} is not a width and a height in pixels, such as 512x768 or 512", parameter, context)
        return int(found[1]), int(found[2] or found[1])


class Adapter(click.ParamType):
    """An adapter file with its strength: ``dog.safetensors:0.8``, ``hound=dog.safetensors``, ``C:\\dog.safetensors``.

    ``dog.safetensors:0@0,1@0.4`` is a strength that changes while a picture is drawn: none at its beginning, 1 from
    four tenths on, linear between. ``dog.safetensors:0.8:lbw=OUTALL`` weighs its blocks, as in a tag; a preset's name
    needs no ``lbw=``: ``dog.safetensors:content``.

    What follows the last colon is a strength if it is a number and the whole word is no file. A drive letter is no
    strength, since what follows its colon is a path.
    """

    name = "file[:strength]"

    def convert(
        self, value: str | AdapterWord, parameter: click.Parameter | None, context: click.Context | None
    ) -> AdapterWord:
        """Reads an adapter.

        Example:
            >>> word = ADAPTER("hound=runs/dog.safetensors:0.8")
            >>> word.file.name, word.strength, word.name
            ('dog.safetensors', 0.8, 'hound')
            >>> ADAPTER("dog:v2.safetensors").strength
            1.0
            >>> word = ADAPTER("dog.safetensors:0.8:lbw=IN04=0.5,*.attn2.*=0")
            >>> word.strength, word.blocks
            (0.8, 'IN04=0.5,*.attn2.*=0')
        """
        if isinstance(value, AdapterWord):
            return value
        name, text = None, value
        head, equals, rest = value.partition("=")
        if equals and re.fullmatch(r"[\w-]+", head) and not _exists(value):
            name, text = head, rest
        if not text:
            self.fail(f"{value!r} names no file", parameter, context)
        if _exists(text):
            return AdapterWord(Path(text).expanduser(), name=name)
        file, colon, number = text.rpartition(":")
        blocks = _blocks(number) if colon and file else None
        if blocks is not None:
            return self._weighed(self.convert(file, parameter, context), name, blocks, (parameter, context))
        points = _points(number) if colon and file else None
        if points is not None:
            return AdapterWord(Path(file).expanduser(), name=name, schedule=points)
        strength = _number(number) if colon and file else None
        if strength is None:
            near_number = colon and file and len(file) > 1 and not re.search(r"[\\/.]", number)
            if near_number:
                self.fail(f"the strength {number!r} of {value!r} is not a number; write {file}:0.8", parameter, context)
            return AdapterWord(Path(text).expanduser(), name=name)
        if not math.isfinite(strength):
            self.fail(f"the strength {number!r} of {value!r} must be a finite number", parameter, context)
        return AdapterWord(Path(file).expanduser(), strength, name)

    def _weighed(
        self,
        word: AdapterWord,
        name: str | None,
        blocks: str,
        asked: tuple[click.Parameter | None, click.Context | None],
    ) -> AdapterWord:
        if word.blocks is not None:
            self.fail(f"the blocks of {word.file} are weighed twice, {word.blocks} and {blocks}; drop one", *asked)
        return replace(word, name=name, blocks=blocks)


class HeldOut(click.ParamType):
    """What is held out: a share such as ``0.1``, or a file."""

    name = "file|share"

    def convert(
        self, value: str | float, parameter: click.Parameter | None, context: click.Context | None
    ) -> str | float:
        """Reads a share or a file's name.

        Example:
            >>> HELD_OUT("0.1"), HELD_OUT("eval.jsonl")
            (0.1, 'eval.jsonl')
        """
        if isinstance(value, float) or _exists(value):
            return value
        number = _number(value)
        return value if number is None else number


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a zero byte
        return False


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _blocks(text: str) -> str | None:
    """Block weights: ``lbw=`` and what it says, or the name of a preset; None where it is neither."""
    if text.startswith("lbw="):
        return text.removeprefix("lbw=")
    if not re.fullmatch(r"[A-Za-z][\w.-]*", text):
        return None
    from studio.adapters.targets.block_lists import BLOCK_PRESETS, PART_PRESETS

    return text if text in BLOCK_PRESETS or text in PART_PRESETS else None


def _points(text: str) -> tuple[tuple[float, float], ...] | None:
    """Points (progress, strength) of ``0@0,1@0.4``; None where it is not of this form."""
    pairs = [[_number(number) for number in part.split("@")] for part in text.split(",")] if "@" in text else []
    points = [(pair[1], pair[0]) for pair in pairs if len(pair) == 2 and pair[0] is not None and pair[1] is not None]
    return tuple(points) if points and len(points) == len(pairs) else None


SEEDS = Seeds()
SIZE = Size()
ADAPTER = Adapter()
HELD_OUT = HeldOut()
