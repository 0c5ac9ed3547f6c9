"""What a speech recogniser of Whisper's family hears, and what stands before what it writes down."""

from __future__ import annotations

from typing import Any, Final

import numpy
import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families.language.base import LanguageBase
from studio.sounds import Sound, resampled

__all__ = ["beginning", "check_hears", "features", "heard_seconds", "heard_shape", "rate_of", "spoken_language"]

START, TASK, SILENT, ENGLISH = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>", "<|en|>"
STRIDE: Final = 2  # frames per position of Whisper's encoder


def check_hears(base: LanguageBase) -> None:
    """Checks that a base writes down what it hears, and is of Whisper's family.

    Raises:
        DoesNotFit: it does not, or it is another sort of speech recogniser.
    """
    if base.kind.name != "speech":
        raise DoesNotFit(f"{base.id} is {base.kind.one}, which hears nothing: give a speech recogniser (speech)")
    if base.model.config.model_type != "whisper":
        raise DoesNotFit(f"{base.id} is a {base.model.config.model_type!r}; Whisper's family is what is heard with")


def rate_of(base: LanguageBase) -> int:
    """Returns how many samples a second a base hears."""
    return int(base.processor.feature_extractor.sampling_rate)


def heard_seconds(base: LanguageBase) -> float:
    """Returns how long a sound may be."""
    return _most(base) / rate_of(base)


def features(base: LanguageBase, sound: Sound, name: str) -> Tensor:
    """Returns what the encoder reads of a sound, at the base's own rate and filled up with silence.

    Args:
        base: the base. sound: the sound. name: what messages call it.

    Returns:
        The logarithms of its mel spectrum, fp32 ``(mels, frames)``.

    Raises:
        DoesNotFit: it is longer than the base hears.
    """
    if sound.seconds > heard_seconds(base):
        raise DoesNotFit(
            f"the sound {name} lasts {sound.seconds:.1f} seconds, and {base.id} hears {heard_seconds(base):.1f}: cut it"
        )
    extractor, most = base.processor.feature_extractor, _most(base)
    samples = resampled(sound, rate_of(base))[:most]
    filled = numpy.pad(samples, (0, most - len(samples)))
    made: Any = extractor(
        filled, sampling_rate=rate_of(base), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )["input_features"]
    return torch.as_tensor(made[0])


def heard_shape(base: LanguageBase) -> tuple[int, int]:
    """Returns ``(mels, frames)`` of what :func:`features` gives, whatever the sound."""
    config = base.model.config
    return int(config.num_mel_bins), int(config.max_source_positions * STRIDE)


def beginning(base: LanguageBase, language: str | None = None) -> list[int]:
    """Returns the tokens that stand before a transcript: its start, and language and task where the base has several.

    Args:
        base: the base. language: the code of what is spoken, ``"de"``; None: what the base's tokenizer was saved with.

    Raises:
        DoesNotFit: the base has no mark for the language or marks none, or several languages of which none is named.
    """
    known, marked = base.tokenizer.get_vocab(), _marks_languages(base)
    if language is None:
        marks = [int(mark) for mark in base.tokenizer.prefix_tokens]
        if marked and ENGLISH in known and spoken_language(base) is None:
            raise DoesNotFit(f'{base.id} writes down several languages: say which, language="en"')
        return marks
    if not marked:
        raise DoesNotFit(f"{base.id} puts no language before a transcript: leave language={language!r} out")
    wanted = [START, f"<|{language}|>", TASK, SILENT]
    missing = next((mark for mark in wanted if mark not in known), None)
    if missing is not None:
        raise DoesNotFit(f"{base.id} has no mark {missing} for language={language!r}; leave the language out")
    return [int(known[mark]) for mark in wanted]


def spoken_language(base: LanguageBase) -> str | None:
    """Returns the language that the base's tokenizer was saved with; None where it names none."""
    return getattr(base.tokenizer, "language", None)


def _marks_languages(base: LanguageBase) -> bool:
    """Whether a transcript begins with its language; ``whisper-tiny.en`` has the marks and was trained without them."""
    return getattr(base.model.generation_config, "is_multilingual", None) is not False


def _most(base: LanguageBase) -> int:
    """Returns how many samples the encoder has positions for."""
    return int(base.model.config.max_source_positions * STRIDE * base.processor.feature_extractor.hop_length)
