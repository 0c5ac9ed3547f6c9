"""The lesson on speech recognisers: what is said in sounds, measured on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.datasets.spoken import Spoken
from studio.families.language import LanguageBase
from studio.families.language.hearing import check_hears, features, heard_shape
from studio.trainers.language.lesson import MEASURED, TokenLesson
from studio.trainers.language.mishearing import error_rate
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rows import short
from studio.trainers.language.seq2seq import filled, shortened
from studio.trainers.language.texts import IGNORED

__all__ = ["SpeechLesson", "SpokenRow", "encode_spoken", "rehearsed_sounds", "spoken_loss"]


@dataclass(frozen=True)
class SpokenRow:
    """A sound as the encoder reads it, and what is said in it as token numbers.

    Args:
        sample: what it is of.
        heard: the sound's features, fp32 ``(mels, frames)``, computed once.
        given: tokens that stand before the transcript: start, language and task.
        said: those of the transcript, its end included; all of them are learned.
        rate: samples a second of the sound before it was resampled.
        lost: how many tokens were cut off.
    """

    sample: Spoken
    heard: Tensor = field(repr=False, compare=False)
    given: tuple[int, ...]
    said: tuple[int, ...]
    rate: int
    lost: int = 0

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.given) + len(self.said)

    @property
    def counted(self) -> int:
        """Its learned tokens."""
        return len(self.said)

    def ends(self, base: LanguageBase) -> bool:
        """Whether the last token ends a transcript."""
        return self.said[-1] in base.ends


def encode_spoken(sample: Spoken, base: LanguageBase, given: Sequence[int], length: int) -> SpokenRow:
    """Turns a sound into features and its transcript into token numbers, at most ``length`` with what is given.

    What is too long loses tokens before its end.

    Args:
        sample: the sample. base: the base. given: tokens before the transcript. length: tokens at most.

    Raises:
        DoesNotFit: the sound is longer than the base hears. BadFile: it cannot be read any more.
    """
    sound = sample.sound()
    text = base.tokenizer(sample.text.strip(), add_special_tokens=False, verbose=False)["input_ids"]
    said, room = [*text, base.ends[0]], max(length - len(given), 1)
    return SpokenRow(
        sample, features(base, sound, sample.name), tuple(given), shortened(said, room), sound.rate,
        max(len(said) - room, 0),
    )  # fmt: skip


def spoken_loss(base: LanguageBase, rows: Sequence[SpokenRow]) -> tuple[Tensor, int]:
    """Returns the sum of the losses of the transcripts, each with its end, and the number of their tokens.

    Args:
        base: the base. rows: B sounds.
    """
    device, dtype = base.model.device, base.model.dtype
    heard = torch.stack([row.heard for row in rows]).to(device, dtype)
    tokens, _ = filled([(*row.given, *row.said[:-1]) for row in rows], base.pad)
    labels, _ = filled([(*[IGNORED] * (len(row.given) - 1), *row.said) for row in rows], IGNORED)
    labels = labels.to(device)
    logits = base.model(input_features=heard, decoder_input_ids=tokens.to(device), use_cache=False).logits
    kept = labels != IGNORED
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum"), int(kept.sum())


@dataclass(kw_only=True)
class SpeechLesson(TokenLesson[SpokenRow]):
    r"""An opened task on a speech recogniser.

    Args:
        previews: what previews hear.
    """

    previews: Sequence[SpokenRow]

    def summed(self, rows: Sequence[SpokenRow]) -> tuple[Tensor, int]:
        return spoken_loss(self.base, rows)

    def judged(self) -> dict[str, float]:
        """Returns the rates of wrong words and of wrong letters."""
        found = dict[str, float]()
        if self.asked:
            made = self._written(self.asked, 4 + max(row.counted for row in self.asked))
            right = [row.sample.text.strip() for row in self.asked]
            found["word_error_rate"] = error_rate([one.split() for one in right], [one.split() for one in made])
            found["character_error_rate"] = error_rate(right, made)
        return found

    def preview(self) -> list[str]:
        """Writes down what previews hear with the adapter as it is now, through the one path for sounds."""
        return self._written(self.previews, self.preview_tokens)

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [short(f"{row.sample.name} (said: {row.sample.text})") for row in self.previews]

    def _written(self, rows: Sequence[SpokenRow], most: int) -> list[str]:
        from studio.pipelines.hearing import write_down

        if not rows:
            return []
        made = write_down(self.base, [row.heard for row in rows], rows[0].given, most, MEASURED)
        return [one.text for one in made]


def rehearsed_sounds(stand: Stand) -> SpeechLesson:
    """Returns the lesson on silence, which is as long as all sounds are once they are filled up.

    Args:
        stand: what it is rehearsed with.

    Raises:
        DoesNotFit: the base is no recogniser of Whisper's family.
    """
    check_hears(stand.base)
    said = (1,) * (stand.length - 1)
    row = SpokenRow(Spoken(1), torch.zeros(heard_shape(stand.base)), (1,), said, rate=0)
    return SpeechLesson(**stand.shared, samples=[row], held_out=[], previews=[], answers=0, preview_tokens=1)
