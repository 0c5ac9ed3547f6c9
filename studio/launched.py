"""What a launcher says about this process: torchrun, accelerate and SLURM's scripts set the same variables."""

from __future__ import annotations

import contextlib
import os

from studio.errors import BadConfig

__all__ = ["is_main", "started_processes"]


def started_processes() -> tuple[int, int]:
    """Returns this process's number and how many a launcher has started, ``(0, 1)`` without one.

    Raises:
        BadConfig: a launcher's variables that are no numbers.

    Example:
        >>> started_processes()
        (0, 1)
    """
    words = [os.environ.get(name, usual) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    if not all(word.isdecimal() for word in words) or int(words[0]) >= max(int(words[1]), 1):
        raise BadConfig(f"RANK={words[0]!r}, WORLD_SIZE={words[1]!r}: a launcher sets both to whole numbers")
    return int(words[0]), max(int(words[1]), 1)


def is_main() -> bool:
    """Says whether this process is the one of several that tells about what they do.

    What is no launcher's (a variable of that name with another meaning) says nothing; a training refuses it.
    """
    with contextlib.suppress(BadConfig):
        return started_processes()[0] == 0
    return True
