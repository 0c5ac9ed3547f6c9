"""What the pictures of a list are called: a pattern with fields, always inside the folder, never two alike."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from studio.errors import BadConfig, UnknownName, nearest
from studio.pipelines.metadata import ENDINGS
from studio.pipelines.rendering.job import Job

__all__ = ["NAME", "kind_of", "named"]

NAME: Final = "{index:05}"
"""The pattern where none is given."""
LONGEST: Final = 120  # characters of one field
BYTES: Final = 200  # of a file's name; systems take 255, and a temporary name is longer
RESERVED: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))]
)
OWN: Final = "own"  # of a field that is the base's own

FIELDS: Final[Mapping[str, Callable[[Job, str], Any]]] = {
    "index": lambda job, digest: job.index,
    "seed": lambda job, digest: job.seed,
    "prompt": lambda job, digest: job.prompt,
    "negative": lambda job, digest: job.negative or "",
    "base": lambda job, digest: Path(job.base).stem or job.base,
    "hash": lambda job, digest: digest,
    "blend": lambda job, digest: " ".join(f"{name}-{_short(one)}" for name, one in job.blend.items()) or "base",
    "steps": lambda job, digest: job.steps,
    "guidance": lambda job, digest: job.guidance,
    "width": lambda job, digest: job.width,
    "height": lambda job, digest: job.height,
    "scheduler": lambda job, digest: job.scheduler,
    "strength": lambda job, digest: job.strength,
    "upscale": lambda job, digest: job.upscale,
}
"""What a pattern may hold."""


def kind_of(pattern: str) -> str:
    """Returns the format of pictures, as Pillow names it, by how the pattern of their names ends.

    Args:
        pattern: as :func:`named` takes it.

    Example:
        >>> kind_of("{index:05}"), kind_of("{prompt}.jpg")
        ('PNG', 'JPEG')
    """
    return ENDINGS.get(_ending(pattern), "PNG")


def named(pattern: str, jobs: Sequence[Job], digests: Sequence[str]) -> list[str]:
    """Returns the file of every job's picture, relative to the folder, with ``/`` between folders.

    Args:
        pattern: text with fields in braces: ``{index:05}``, ``{prompt:40}`` (at most 40 characters of it),
            ``{guidance:.1f}``; ``/`` makes folders; where it does not end in ``.png``, ``.jpg``, ``.jpeg`` or
            ``.webp``, ``.png`` is put behind it.
        jobs: the jobs. digests: their hashes.

    Raises:
        UnknownName: no such field.
        BadConfig: a pattern that cannot be read or leads out of the folder, or two jobs of one name.
    """
    ending = _ending(pattern) if isinstance(pattern, str) else ""
    parts = _parts(pattern[: len(pattern) - len(ending)] if ending else pattern)
    files: list[str] = []
    taken: dict[str, Job] = {}
    for job, digest in zip(jobs, digests, strict=True):
        file = f"{_file(parts, job, digest)}{ending or '.png'}"
        other = taken.setdefault(file.casefold(), job)  # some systems take Dog.png and dog.png for one
        if other is not job:
            raise BadConfig(
                f"the name {pattern!r} makes {file} of two jobs ({other.where}, {job.where}): put {{index:05}} or "
                "{hash:8} into it"
            )
        files.append(file)
    return files


def _parts(pattern: Any) -> list[tuple[str, str | None, str]]:
    """The pattern's pieces: text, and behind it a field with its format."""
    if not isinstance(pattern, str) or not pattern or "\0" in pattern or "\\" in pattern:
        raise BadConfig(f"name={pattern!r} is no pattern of file names; write '{{prompt:40}}_{{seed}}_{{index:05}}'")
    try:
        read = [(text, name, form or "", turn) for text, name, form, turn in string.Formatter().parse(pattern)]
    except ValueError as error:
        raise BadConfig(f"the name {pattern!r} cannot be read: {error}; {{{{ and }}}} are the characters") from None
    for _, name, form, turn in read:
        if name is None:
            continue
        if name not in FIELDS:
            close = nearest(name, FIELDS, 1)[0]
            known = ", ".join(FIELDS)
            raise UnknownName(f"the name {pattern!r} has the field {name!r}; did you mean {close!r}? (fields: {known})")
        if turn or "{" in form:
            raise BadConfig(f"the name {pattern!r} has a field in a field; write {{{name}}} or {{{name}:5}}")
    plain = "".join(text if name is None else f"{text}x" for text, name, _, _ in read)
    if PurePosixPath(plain).is_absolute() or re.match(r"[A-Za-z]:", plain) or ".." in PurePosixPath(plain).parts:
        raise BadConfig(
            f"the name {pattern!r} leads out of the folder; leave '..', '/' at its beginning and drives out"
        )
    return [(text, name, form) for text, name, form, _ in read]


def _file(parts: Sequence[tuple[str, str | None, str]], job: Job, digest: str) -> str:
    text = ""
    for before, name, form in parts:
        text += before + ("" if name is None else _field(name, form, FIELDS[name](job, digest)))
    folders = [_sound(part) for part in text.split("/") if part not in ("", ".")]
    stem = folders.pop() if folders else "picture"
    return "/".join([*folders, stem])


def _ending(pattern: str) -> str:
    return next((ending for ending in ENDINGS if pattern.lower().endswith(ending)), "")


def _field(name: str, form: str, value: Any) -> str:
    """One field: a number in its format, of a text so many characters."""
    if isinstance(value, (int, float)):
        try:
            return format(value, form or ("g" if isinstance(value, float) else ""))
        except (ValueError, OverflowError):
            raise BadConfig(
                f"the field {{{name}:{form}}} of the name is no format of a number; write {{{name}:05}}"
            ) from None
    if form and not form.isdigit():
        raise BadConfig(
            f"the field {{{name}:{form}}} of the name is text, which takes a number of characters: {{{name}:40}}"
        )
    text = OWN if value is None else re.sub(r"[^\w.-]+", "-", str(value)[:2000]).strip("-.")
    return text[: int(form) if form and len(form) < 5 else LONGEST].strip("-.")


def _sound(part: str) -> str:
    """A name that every system takes, and that hides nothing."""
    clean = re.sub(r'[\x00-\x1f<>:"|?*]', "-", part).strip(" .") or "picture"
    clean = f"_{clean}" if clean.partition(".")[0].lower() in RESERVED else clean
    return os.fsencode(clean)[:BYTES].decode(errors="ignore")


def _short(strength: Any) -> str:
    return f"{strength:g}" if isinstance(strength, (int, float)) else str(strength)
