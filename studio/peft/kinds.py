"""PEFT's enumerations, its warnings and errors, and how the studio's errors look to a script written for PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from studio.errors import BadConfig, DoesNotFit, NoTargets, StudioError, UnknownName

__all__ = [
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftType",
    "PeftWarning",
    "VERSION",
    "TaskType",
    "Wrong",
    "refusals",
]

_WORDS: Final = (
    "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING LORA ADALORA ADAMSS BOFT ADAPTION_PROMPT IA3 BEFT "
    "LILY LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA CPT MISS RANDLORA ROAD "
    "TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT SHADOW SUPERTUNING DEFT"
).split()

PeftType = Enum("PeftType", {word: word for word in _WORDS}, type=str, module=__name__)  # type: ignore[misc]
"""The methods that PEFT has; those that are not in ``studio.METHODS`` are refused by name."""


VERSION: Final = "0.21.2"
"""The version of PEFT whose names and files these are."""


class TaskType(str, Enum):
    """What a model is for; decides which class wraps it."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftWarning(UserWarning):
    """A warning of this package."""


class PeftError(Exception):
    """PEFT's own base of errors."""


class Wrong(BadConfig, ValueError):
    """A request that cannot be met; a ``ValueError`` too, which is what PEFT raises."""


class NoMatchingPeftModuleError(NoTargets, PeftError, ValueError):
    """A target that matches no layer."""


class Unknown(UnknownName, KeyError, ValueError):
    """A name that no adapter has."""

    def __str__(self) -> str:  # KeyError shows the representation of its argument
        return Exception.__str__(self)


_MADE: Final[dict[type[StudioError], type[StudioError]]] = {}


def _as_value_error(kind: type[StudioError]) -> type[StudioError]:
    """The same error that is a ``ValueError`` too."""
    if issubclass(kind, NoTargets):
        return NoMatchingPeftModuleError
    if issubclass(kind, UnknownName):
        return Unknown
    if kind is BadConfig:
        return Wrong
    if kind not in _MADE:
        _MADE[kind] = type(kind.__name__, (kind, ValueError), {"__module__": kind.__module__})
    return _MADE[kind]


@contextmanager
def refusals() -> Iterator[None]:
    """Makes the studio's errors ``ValueError``s as well: scripts written for PEFT catch those."""
    try:
        yield
    except StudioError as error:
        if isinstance(error, ValueError):
            raise
        raise _as_value_error(type(error))(str(error)) from error


def unfit(message: str) -> StudioError:
    """Returns the error for two right things that do not belong together."""
    return _as_value_error(DoesNotFit)(message)
