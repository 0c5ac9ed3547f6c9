"""What a picture of another program says about how it was made, in this studio's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from studio.config import finite
from studio.limits import limit
from studio.pipelines.schedulers import scheduler_named

__all__ = ["Notes", "Said", "SaidAdapter", "file_stem"]

LONGEST = 80  # characters of a value that is repeated in a sentence


@dataclass(frozen=True)
class SaidAdapter:
    """An adapter that acted.

    Args:
        name: its file's, without folder and ending.
        strength: on the denoiser.
        text: on the text encoders.
    """

    name: str
    strength: float = 1.0
    text: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a picture says.

    Args:
        tool: the program that made it.
        prompt: may hold tags of adapters.
        negative: what guidance led away from.
        base: what the program called the model; ``""``: it does not say.
        adapters: those that no tag in the prompt says.
        numbers: arguments of :meth:`ImagePipeline.generate` that it gives: seed, steps, guidance, width, ...
        unused: what else it says, each as ``"name: value"``, and is not used.
    """

    tool: str
    prompt: str
    negative: str = ""
    base: str = ""
    adapters: tuple[SaidAdapter, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


class Notes:
    """Takes down what a picture says, value by value; what cannot be used is kept by name.

    Attributes:
        numbers: arguments of ``generate``. unused: the rest, each as ``"name: value"``.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {}
        self.unused: list[str] = []

    def leave(self, name: str, value: Any) -> None:
        """Takes down that a value is not used."""
        text = " ".join(str(value).split())
        self.unused.append(f"{name}: {text[:LONGEST]}{'…' if len(text) > LONGEST else ''}")

    def whole(self, argument: str, name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
        """Takes a whole number; None is no value.

        Args:
            argument: of ``generate``. name: what the picture calls it. value: as it stands there, a number or a text.
            least: the smallest that is possible. most: the largest.
        """
        number = _whole(value)
        if number is not None and least <= number <= (2**63 - 1 if most is None else most):
            self.numbers[argument] = number
        elif value is not None:
            self.leave(name, value)

    def number(self, argument: str, name: str, value: Any, *, most: float = 1e6) -> None:
        """Takes a number from 0 on; see :meth:`whole`."""
        number = _number(value)
        if number is not None and 0 <= number <= most:
            self.numbers[argument] = number
        elif value is not None:
            self.leave(name, value)

    def size(self, width: Any, height: Any) -> None:
        """Takes width and height in pixels."""
        self.whole("width", "width", width, most=limit("side"))
        self.whole("height", "height", height, most=limit("side"))

    def scheduler(self, sampler: Any, spacing: Any = "") -> None:
        """Takes the name of a sampler, and that of its noise levels where it has one of its own.

        Args:
            sampler: ``"DPM++ 2M"``, ``"dpmpp_2m"``. spacing: ``"Karras"``; ``""`` or the usual one.
        """
        if sampler is None:
            return
        spacing = str(spacing or "")
        usual = spacing.lower() in ("", "automatic", "normal", "simple", "uniform")
        both = None if usual else scheduler_named(f"{sampler} {spacing}")
        alone = scheduler_named(str(sampler))
        if both or alone:
            self.numbers["scheduler"] = both or alone
        else:
            self.leave("sampler", sampler)
        if not usual and not both:
            self.leave("noise levels", spacing)


def file_stem(name: Any) -> str:
    """Returns the name of a file without its folder and its ending, of any system.

    Example:
        >>> file_stem("styles\\\\ink v2.safetensors"), file_stem("dog.v1")
        ('ink v2', 'dog.v1')
    """
    last = PurePosixPath(str(name)[:1000].replace("\\", "/")).name
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin|gguf|sft)$", "", last)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value[:40] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if finite(number) else None


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 40:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None
