"""How much of anything is read, in one table: what somebody else wrote costs bounded time and memory.

A limit is tested before the work that it bounds is done. ``STUDIO_LIMITS`` raises (or lowers) limits for a process:

    STUDIO_LIMITS="picture-pixels=200000000 repeats=50000" studio check photos/
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from studio.errors import BadConfig, BadFile, nearest

__all__ = ["LIMITS", "VARIABLE", "Limit", "limit", "too_many", "within"]

VARIABLE: Final = "STUDIO_LIMITS"


@dataclass(frozen=True)
class Limit:
    """One limit.

    Args:
        most: what is still read.
        of: what is counted, as the end of "at most 100 ...".
    """

    most: int
    of: str


LIMITS: Final[dict[str, Limit]] = {
    # adapter files
    "header-bytes": Limit(16 << 20, "bytes of the header of a safetensors file"),
    "config-bytes": Limit(4 << 20, "bytes of a config file such as adapter_config.json"),
    "tensor-axes": Limit(8, "axes of a tensor"),
    "number-digits": Limit(19, "digits of a whole number in a file"),
    "name-characters": Limit(1_000, "characters of a tensor's name"),
    "spare-numbers": Limit(1 << 26, "numbers of an adapter beyond eight times those of its model"),
    "cached-adapter-bytes": Limit(512 << 20, "bytes of adapter files that are kept in memory"),
    "pattern-characters": Limit(2_000, "characters of regular expressions in a file"),
    # text that programs write
    "json-depth": Limit(100, "levels of JSON in one another"),
    # data sets
    "data-bytes": Limit(1 << 30, "bytes of a file of text samples or captions in lines"),
    "caption-bytes": Limit(1 << 20, "bytes of a caption file"),
    "picture-bytes": Limit(256 << 20, "bytes of a picture's file"),
    "picture-pixels": Limit(100_000_000, "pixels of a picture"),
    "sound-bytes": Limit(256 << 20, "bytes of a sound's file"),
    "folder-files": Limit(200_000, "files below a folder"),
    "repeats": Limit(10_000, "repeats of a picture, as the name of its folder gives them"),
    # pictures that are made
    "side": Limit(8_192, "pixels along a side of a picture that is made or trained on"),
    "rows": Limit(1_024, "pictures that are computed together"),
    "steps": Limit(100_000, "steps or noise levels of a sampler"),
    "seeds": Limit(100_000, "seeds of one call"),
    "jobs": Limit(1_000_000, "pictures of one list of jobs"),
    "prompt-characters": Limit(100_000, "characters of a prompt"),
    "prompt-depth": Limit(100, "brackets of a prompt in one another"),
    "combinations": Limit(10_000, "prompts that one prompt makes"),
    "wildcard-bytes": Limit(16 << 20, "bytes of a wildcard file"),
    "baked-bytes": Limit(16 << 30, "bytes of weights that bake='auto' holds twice"),
    "cached-text-bytes": Limit(64 << 20, "bytes of encoded prompts that a pipeline keeps in memory"),
    "metadata-bytes": Limit(1 << 20, "bytes of the text in a picture that makes it again"),
}
"""Every limit, by the name that ``STUDIO_LIMITS`` calls it."""


def limit(name: str) -> int:
    """Returns a limit: the table's, or what ``STUDIO_LIMITS`` says.

    Args:
        name: a key of :data:`LIMITS`.

    Raises:
        BadConfig: ``STUDIO_LIMITS`` names a limit that is not there, or gives no whole number from 1 on.
        KeyError: no limit has that name, which is a mistake in the program.

    Example:
        >>> limit("repeats")
        10000
    """
    return _asked().get(name, LIMITS[name].most)


def within(name: str, found: int, what: str) -> None:
    """Refuses what is over a limit.

    Args:
        name: a key of :data:`LIMITS`.
        found: how much there is.
        what: the subject of the sentence, ``"dog.png has"``; the count follows.

    Raises:
        BadFile: it is more than the limit.
        BadConfig: as :func:`limit`.

    Example:
        >>> within("repeats", 20_240_512, "20240512_beach asks for")
        Traceback (most recent call last):
        ...
        studio.errors.BadFile: 20240512_beach asks for 20,240,512 repeats of a picture...; at most 10,000 are taken ...
    """
    if found > limit(name):
        raise BadFile(f"{what} {_count(found)} {LIMITS[name].of}; at most {_most(name)}")


def too_many(name: str) -> str:
    """Returns the end of a sentence that refuses a number for being over a limit.

    Args:
        name: a key of :data:`LIMITS`.

    Example:
        >>> too_many("rows")
        'at most 1,024 pictures that are computed together (STUDIO_LIMITS="rows=..." raises that)'
    """
    return f'at most {limit(name):,} {LIMITS[name].of} ({VARIABLE}="{name}=..." raises that)'


def _most(name: str) -> str:
    return f'{limit(name):,} are taken ({VARIABLE}="{name}=..." raises that)'


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else "more than 10^18"


def _asked() -> dict[str, int]:
    """Reads the variable; a word that would be ignored is refused."""
    asked = {}
    for word in os.environ.get(VARIABLE, "").replace(",", " ").split():
        name, _, number = word.partition("=")
        if name not in LIMITS:
            close = nearest(name, LIMITS, 1)[0]
            raise BadConfig(
                f"{VARIABLE} names {name!r}, which is no limit; did you mean {close!r}? ({', '.join(LIMITS)})"
            )
        if not (number.isascii() and number.isdigit() and len(number) < 19 and int(number)):
            raise BadConfig(
                f"{VARIABLE} says {word!r}, and a limit is a whole number from 1 on: {name}={LIMITS[name].most}"
            )
        asked[name] = int(number)
    return asked
