"""A job: one picture that is to be made, and how its fields are read from whatever wrote them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from studio.config import own_number
from studio.errors import BadConfig, nearest
from studio.families import BASES
from studio.given import is_text
from studio.pipelines.naming import free_name
from studio.pipelines.rendering.strengths import as_written, made

__all__ = ["FIELDS", "Job", "job_of"]

LARGEST_SEED: Final = 2**63 - 1
ALL: Final = "*"  # ``strength:*`` is that of every adapter in the blend


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture that is to be made; what is None is the base's own.

    Args:
        index: its place in the list, from 0 on.
        where: where it was written, for messages: ``"jobs.csv line 7"``.
        prompt: with its tags.
        base: what draws it: a name, a path, or a hub id.
        seed: from 0 on.
        blend: how strongly which adapters act, by name: a number, a :class:`~studio.adapters.Strength`, the text that
            stands behind the name in a tag (``"unet=0.8:te=0.3"``), or diffusers' table of blocks.
        normalize: whether strengths are lowered where adapters add up.
        adapters: the files of the adapters that it needs, by name; paths as they were found.
        negative: what guidance leads away from.
        steps: denoising steps. guidance: guidance scale. embedded_guidance: as a distilled base takes it.
        width: pixels. height: pixels.
        scheduler: a name.
        image: the file of a picture to start from. mask: that of where it is drawn anew.
        strength: which part of the denoising that picture goes through.
        upscale: how much larger it is drawn again. upscale_strength: which part of the denoising that goes through.
        upscale_steps: its denoising steps.
        wildcards: the folder of the files that ``__name__`` in a prompt names.
        resolved: what the prompt and the negative prompt become by their choices.
    """

    index: int
    where: str
    prompt: str
    base: str
    seed: int = 0
    blend: Mapping[str, Any] = field(default_factory=dict)
    normalize: bool | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    embedded_guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    image: str | None = None
    strength: float | None = None
    mask: str | None = None
    upscale: float | None = None
    upscale_strength: float | None = None
    upscale_steps: int | None = None
    wildcards: str | None = None
    resolved: tuple[str, str] | None = None

    def placed(self, place: Callable[[str], str]) -> Job:
        """Returns the same job with other paths.

        Args:
            place: makes of a path, as it was written, where it is found; names and hub ids it leaves as they are.

        Raises:
            BadConfig: a strength that cannot be. BadFile: a mask that cannot be read.
        """
        given = (self.image, self.mask, self.wildcards)
        image, mask, wildcards = (None if file is None else place(file) for file in given)
        files = {name: place(file) for name, file in self.adapters.items()}
        base = self.base if self.base in BASES else place(self.base)
        blend = {name: made(strength, place) for name, strength in self.blend.items()}
        return replace(self, base=base, adapters=files, image=image, mask=mask, wildcards=wildcards, blend=blend)


class _Wrong(Exception):
    """A value that its field cannot have; the message completes "steps='ten' ..."."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("is no text; put it in quotes")
    if not is_text(value):
        raise _Wrong("holds half a surrogate pair, which is no character; write it in UTF-8")
    return value


def _path(value: Any) -> str:
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise _Wrong("is no path")
    return text


def _number(value: Any) -> float:
    number = own_number(value)
    if isinstance(number, str):  # a cell of a table
        try:
            number = float(number) if "_" not in number else None
        except ValueError:
            number = None
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
        raise _Wrong("is not a finite number")
    return float(number)


def _whole(least: int, most: int = LARGEST_SEED) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        value = own_number(value)
        digits = isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 30
        number = int(value) if digits else value
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise _Wrong(f"is not a whole number from {least} on")
        return number

    return read


def _choice(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = value if isinstance(value, bool) else words.get(str(value).strip().lower())
    if found is None:
        raise _Wrong("is neither true nor false")
    return found


def _blend(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _words(value)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise _Wrong("is no blend; write {robot: 0.8, ink: 0.5}, or in a table robot:0.8 ink:0.5")
    return {name: _strength(name, one) for name, one in value.items()}


def _words(text: str) -> dict[str, Any]:
    """Reads a blend as a cell of a table holds it: ``robot:0.8 ink:0.5``, ``robot``, or JSON."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Wrong(f"is not valid JSON: {error}") from None
        return dict(found)
    pairs = [word.partition(":") for word in text.split()]
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise _Wrong("names an adapter twice; give it one strength")
    return {name: strength if colon else 1.0 for name, colon, strength in pairs}


def _strength(name: str, value: Any) -> Any:
    try:
        return as_written(value, _number)
    except _Wrong as wrong:
        raise _Wrong(f"gives {name!r} the strength {value!r}, which {wrong}") from None
    except (TypeError, ValueError, RecursionError) as wrong:
        raise _Wrong(f"gives {name!r} a strength that cannot be read: {wrong}") from None


FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "prompt": _text, "base": _path, "seed": _whole(0), "blend": _blend, "normalize": _choice, "negative": _text,
    "steps": _whole(1),
    "guidance": _number, "embedded_guidance": _number, "width": _whole(1), "height": _whole(1), "scheduler": _text,
    "image": _path, "strength": _number, "mask": _path, "upscale": _number, "upscale_strength": _number,
    "upscale_steps": _whole(1), "wildcards": _path,
}  # fmt: skip
"""What a job may say, and how each value is read."""


def job_of(values: Mapping[str, Any], *, index: int, where: str) -> Job:
    """Returns the job that a table of fields describes; a field that is None is as if it were not there.

    Args:
        values: field to value; ``strength:robot`` is the strength of one adapter, ``strength:*`` that of all.
        index: its place in the list. where: where it was written.

    Raises:
        BadConfig: a field that no job has, one that is missing, or a value that it cannot have; where, and which.

    Example:
        >>> job_of({"prompt": "a dog", "base": "emoji", "steps": "8"}, index=0, where="jobs.csv line 2").steps
        8
        >>> job_of({"prompt": "a dog", "base": "emoji", "stesp": 8}, index=0, where="jobs.csv line 2")
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: jobs.csv line 2: no job has the field 'stesp'; did you mean 'steps'? (fields: ...)
    """
    found: dict[str, Any] = {}
    strengths: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        of = name.removeprefix("strength:") if isinstance(name, str) else ""
        if of and of != name:
            strengths[of] = _read(where, name, functools.partial(_strength, of), value)
        elif name in FIELDS:
            found[name] = _read(where, name, FIELDS[name], value)
        else:
            raise _unknown(where, name)
    for name in ("prompt", "base"):
        if name not in found:
            raise BadConfig(f"{where}: the field {name!r} is missing: every job needs one, its own or a default")
    if strengths:
        found["blend"] = _strengthened(where, found.get("blend", {}), strengths)
    return Job(index=index, where=where, **found)


def _read(where: str, name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except _Wrong as wrong:
        raise BadConfig(f"{where}: {name}={repr(value)[:80]} {wrong}") from None


def _unknown(where: str, name: Any) -> BadConfig:
    known = [*FIELDS, "seeds", "adapters", "axes"]
    close = nearest(str(name), known, 1)[0]
    return BadConfig(
        f"{where}: no job has the field {str(name)[:80]!r}; did you mean {close!r}? (fields: {', '.join(known)}, "
        "strength:NAME)"
    )


def _strengthened(where: str, blend: Mapping[str, Any], strengths: Mapping[str, Any]) -> dict[str, Any]:
    """The blend with strengths that stand in fields of their own; what it names by a file has a name too."""
    if ALL in strengths and not blend:
        raise BadConfig(f"{where}: strength:* is that of every adapter in the blend, and the blend is empty; name some")
    found = dict.fromkeys(blend, strengths[ALL]) if ALL in strengths else dict(blend)
    named = {free_name(Path(key), "", ()): key for key in blend}
    return found | {named.get(name, name): value for name, value in strengths.items() if name != ALL}
