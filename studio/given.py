"""What somebody else wrote is read with bounds: regular files alone, so many bytes, JSON so deep."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from studio.errors import BadFile
from studio.limits import VARIABLE, limit, within

__all__ = ["check_regular", "given_path", "is_blank", "is_text", "open_given", "parse_json", "read_given"]

_SHAPELESS = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's categories of control, format and space
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def given_path(given: Any, name: str = "file") -> Path:
    """Reads the path of a file or folder that a caller names; ``~`` is the home folder.

    Args:
        given: a text, or a path. name: what the argument is called, for the message.

    Raises:
        BadFile: it is of another type, or empty, or no path could be so.

    Example:
        >>> given_path(5)
        Traceback (most recent call last):
        ...
        studio.errors.BadFile: file=5 is no path; give a text or a pathlib.Path
    """
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str) or not text or "\0" in text:
        raise BadFile(f"{name}={repr(given)[:60]} is no path; give a text or a pathlib.Path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who is not known
        raise BadFile(f"{name}={text[:60]!r} is no path: {error}") from None


def check_regular(file: Path) -> int:
    """Checks, without opening it, that a path leads to a regular file; what links lead to counts.

    Returns:
        Its size in bytes.

    Raises:
        BadFile: it is a folder, a pipe, a device or a socket; the message completes "this file ...".
        OSError: there is no such file, or it cannot be looked at.
    """
    found = file.stat()
    for is_one, name in _KINDS:
        if is_one(found.st_mode):
            raise BadFile(f"is {name}, not a file: only regular files are read")
    return found.st_size


def read_given(file: Path, most: str) -> bytes:
    """Reads a regular file of bounded size.

    Args:
        file: the file.
        most: the limit on its bytes, a key of :data:`studio.limits.LIMITS`.

    Raises:
        BadFile: as :func:`check_regular`, or it is larger than the limit; the message completes "this file ...".
        OSError: it cannot be read.
    """
    within(most, check_regular(file), "has")
    with open_given(file) as stream:
        data = stream.read(limit(most) + 1)  # a file of /proc says 0 bytes and gives any number
    within(most, len(data), "has")
    return data


def open_given(file: Path) -> BinaryIO:
    """Opens a regular file to read its bytes.

    Raises:
        BadFile: as :func:`check_regular`.
        OSError: it cannot be opened.
    """
    check_regular(file)
    # one that was exchanged for a pipe meanwhile must not wait
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(file, flags), "rb")


def parse_json(
    text: str | bytes,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    whole: Callable[[str], int] | None = None,
) -> Any:
    """Reads JSON that somebody else wrote.

    Args:
        text: the JSON; bytes as UTF-8.
        pairs: makes an object of its members; None: a dict, in which no name may stand twice.
        whole: makes a number of its digits; both may refuse.

    Raises:
        ValueError: it is not JSON, is nested deeper than the limit, names a member of an object twice, or holds a text
            that is no Unicode (half of a surrogate pair); the message completes "not valid JSON: ...".

    Example:
        >>> parse_json('{"text": "a dog"}')
        {'text': 'a dog'}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: more than 100 levels of JSON in one another (STUDIO_LIMITS="json-depth=..." raises that)
    """
    depth = limit("json-depth")
    deep = f'more than {depth:,} levels of JSON in one another ({VARIABLE}="json-depth=..." raises that)'
    try:
        content = json.loads(text, object_pairs_hook=pairs or _once, parse_int=whole)
    except RecursionError:
        raise ValueError(deep) from None
    layer = [content]
    for _ in range(depth):
        layer = [part for entry in layer for part in _parts(entry)]
    for entry in layer:
        if isinstance(entry, (dict, list)):
            raise ValueError(deep)
        _parts(entry)
    return content


def is_text(text: str) -> bool:
    r"""Whether a text can be encoded: half of a surrogate pair, as a name that is not UTF-8 gives it, is no character.

    Example:
        >>> is_text("caf\u00e9"), is_text("caf\udce9")
        (True, False)
    """
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def is_blank(text: str) -> bool:
    r"""Whether nothing of a text can be seen: spaces, and marks without a shape such as U+200B, alone.

    Example:
        >>> is_blank(" \n\u200b"), is_blank("a")
        (True, False)
    """
    return all(unicodedata.category(character) in _SHAPELESS for character in text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{ascii(twice[:40])} stands there twice; which one is meant?")
    return found


def _parts(entry: Any) -> list[Any]:
    """The members of a list or an object, keys included; a text is checked and has none."""
    if isinstance(entry, str):
        if not is_text(entry):
            raise ValueError(f"the text {ascii(entry[:40])} holds half a surrogate pair, which is no character")
        return []
    if isinstance(entry, dict):
        return [*entry, *entry.values()]
    return entry if isinstance(entry, list) else []
