"""PEFT's words for methods and tasks, and the version that they are of."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["VERSION", "PeftType", "TaskType"]

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
