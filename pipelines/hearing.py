"""The one path for sounds: files in, transcripts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from studio.adapters.hosting.turns import turn
from studio.config import whole_from_one
from studio.families.language import LanguageBase
from studio.families.language.hearing import features
from studio.pipelines.generating import Written, generated
from studio.pipelines.write import evaluating
from studio.sounds import Sound, read_sound

__all__ = ["Transcript", "heard_of", "write_down"]


@dataclass(frozen=True)
class Transcript:
    """What was written down of a sound.

    Attributes:
        file: what the sound is called.
        text: what is said in it.
        tokens: how many tokens were written.
        ended: whether it ended by itself, not at a limit.
    """

    file: str
    text: str
    tokens: int
    ended: bool


def heard_of(base: LanguageBase, sound: str | Path | Sound) -> Tensor:
    """Returns what the encoder reads of a sound, fp32 ``(mels, frames)``.

    Args:
        base: which hears. sound: a file, or a sound.

    Raises:
        BadFile: no sound that can be read. MissingPackage: what reads it is not installed.
        DoesNotFit: it is longer than the base hears.
    """
    read = sound if isinstance(sound, Sound) else read_sound(sound)
    return features(base, read, "" if isinstance(sound, Sound) else str(sound))


def write_down(
    base: LanguageBase, heard: Sequence[Tensor], given: Sequence[int], max_new_tokens: int, batch_size: int
) -> list[Written]:  # fmt: skip
    """Writes down what is said in sounds with the blend that is on, the likeliest token each time.

    Args:
        base: a speech recogniser; it is in evaluation mode meanwhile.
        heard: the features of each sound, fp32 ``(mels, frames)``.
        given: tokens that stand before a transcript.
        max_new_tokens: tokens to write at most, >= 1; fewer where the context ends.
        batch_size: sounds that are written down together.

    Raises:
        BadConfig: an impossible number. StudioError: the model gave no finite numbers.
    """
    max_new_tokens = whole_from_one("max_new_tokens", max_new_tokens)
    batch_size = whole_from_one("batch_size", batch_size)
    most, made = min(max_new_tokens, base.context - len(given)), list[Written]()
    with turn(base.model), evaluating(base.model):
        for begin in range(0, len(heard), batch_size):
            some = torch.stack(list(heard[begin : begin + batch_size])).to(base.model.device, base.model.dtype)
            before = torch.tensor([list(given)] * len(some), device=some.device)
            inputs = {"inputs": some, "attention_mask": torch.ones_like(some[:, 0]), "decoder_input_ids": before}
            made += generated(base, inputs, begin=len(given), most=most)
    return made
