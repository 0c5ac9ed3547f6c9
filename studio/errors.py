"""The errors of the studio: every message says what was asked, what was found and what to do.

::

    StudioError                       exit code 1   something failed while it ran
    ├── UsageError                    exit code 2   the request was wrong
    │   ├── UnknownName                             no such name; carries the nearest right ones
    │   ├── NoTargets                               a target pattern that matches no layer
    │   ├── UnsupportedLayer                        a layer that a method or the studio cannot host
    │   ├── BadFile                                 a file that is missing, truncated, hostile or of another kind
    │   ├── BadConfig                               a field with an impossible value
    │   ├── MissingPackage                          an optional package that is not installed
    │   └── DoesNotFit                              two right things that do not belong together
    └── Refused                       exit code 3   would be silently wrong: partial load, nothing trained, no effect
        ├── PartialLoad
        ├── NothingTrained
        ├── NoEffect
        └── NotAllDone
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "BadConfig",
    "BadFile",
    "DoesNotFit",
    "MissingPackage",
    "NoEffect",
    "NoTargets",
    "NotAllDone",
    "NothingTrained",
    "PartialLoad",
    "Refused",
    "StudioError",
    "UnknownName",
    "UnsupportedLayer",
    "UsageError",
    "nearest",
]


class StudioError(Exception):
    """Base of all errors that the studio raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class UsageError(StudioError):
    """The request was wrong; the command line prints the sentence without a traceback."""

    exit_code: ClassVar[int] = 2


class UnknownName(UsageError):
    """A name that nothing is registered under."""


class NoTargets(UsageError):
    """A target pattern that matches no layer of the model."""


class UnsupportedLayer(UsageError):
    """A layer that cannot be adapted in the way that was asked for."""


class BadFile(UsageError):
    """A file that is missing, truncated, hostile, or not what its name says."""


class Taken(BadFile):
    """A file that must be new has a name that is taken."""


class BadConfig(UsageError):
    """A field whose value is impossible."""


class MissingPackage(UsageError):
    """An optional package that is not installed; the message names the extra."""


class DoesNotFit(UsageError):
    """Two things that are right by themselves and do not belong together."""


class Refused(StudioError):
    """The result would be silently wrong, so there is none."""

    exit_code: ClassVar[int] = 3


class PartialLoad(Refused):
    """A file of which only a part could be applied."""


class NothingTrained(Refused):
    """A training that changes nothing, or not everything that it was asked to change."""


class NoEffect(Refused):
    """An adapter that is active and changes nothing."""


class NotAllDone(Refused):
    """A list of which some jobs are not done."""


def nearest(asked: str, known: Iterable[str], count: int = 5, least: float = 0.0) -> list[str]:
    """Returns the ``count`` names of ``known`` that look most like ``asked``, best first.

    Args:
        asked: what was asked for. known: the names. count: how many at most.
        least: how alike they are at least, from 0 to 1 (:meth:`difflib.SequenceMatcher.ratio`).

    Example:
        >>> nearest("lorra", ["dora", "lora", "ia3"], 1)
        ['lora']
        >>> nearest("weight", ["dora", "lora", "ia3"], 1, 0.6)
        []
    """
    names = sorted(set(known))
    said = str(asked)[:1000].lower()  # a caller may have asked for anything
    score = {name: difflib.SequenceMatcher(None, said, name.lower()).ratio() for name in names}
    alike = [name for name in names if score[name] >= least]
    return sorted(alike, key=lambda name: (-score[name], name))[:count]
