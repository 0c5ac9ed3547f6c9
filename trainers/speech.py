"""Speech recognition: a recogniser of Whisper's family learns to write down what is said in sounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.datasets.samples import Form
from studio.datasets.spoken import Spoken, spoken_of
from studio.families.language import LanguageBase
from studio.families.language.hearing import beginning, check_hears, rate_of
from studio.trainers.language.speech import SpeechLesson, SpokenRow, encode_spoken
from studio.trainers.text_task import Shared, TextTask

__all__ = ["Speech"]

SHOWN: Final = 4  # sounds that previews write down


@dataclass(frozen=True, kw_only=True)
class Speech(TextTask[Spoken, SpokenRow]):
    """Teaches a speech recogniser of Whisper's family what is said in sounds.

    Two facts suffice: ``base`` and ``data``, a folder of sounds with their transcripts or a file that names them.
    :mod:`studio.datasets.spoken` has the forms of a record, :class:`~studio.trainers.text_task.TextTask` the other
    settings.

    Attributes:
        language: the code of what is spoken, ``"de"``, for a base that has marks for languages; None: what the base's
            tokenizer was saved with.
        answers: how many held-out sounds are written down for the error rates; 0 measures the loss alone.
        preview_tokens: tokens of a preview at most.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Speech(base="whisper/", data="clips/", held_out=0.1).task_name
        'speech'
    """

    task_name: ClassVar[str] = "speech"
    kind: ClassVar[str] = "speech"
    least: ClassVar[Mapping[str, int]] = {"answers": 0, "preview_tokens": 1}

    language: str | None = None
    answers: int = 200
    preview_tokens: int = 64

    @property
    def form(self) -> Form[Spoken]:
        return spoken_of

    def encode(self, sample: Spoken, base: LanguageBase, length: int) -> SpokenRow:
        check_hears(base)
        return encode_spoken(sample, base, beginning(base, self.language), length)

    def example(self, row: SpokenRow, base: LanguageBase) -> str:
        given, said = base.tokenizer.decode(row.given), base.tokenizer.decode(row.said)
        return f"{row.sample.name}: {given} ⟦{said}⟧"

    def call(self, sample: Spoken) -> Sequence[str]:
        return "complete", "BASE", sample.name

    def remarks(self, rows: Sequence[SpokenRow], base: LanguageBase) -> Iterator[str]:
        own = rate_of(base)
        for rate, count in sorted(Counter(row.rate for row in rows if row.rate != own).items()):
            yield f"{count} sound{'s' * (count > 1)} resampled from {rate} to {own} Hz"

    def lesson(self, shared: Shared, rows: Sequence[SpokenRow], held_out: Sequence[SpokenRow]) -> SpeechLesson:
        return SpeechLesson(
            **shared, samples=rows, held_out=held_out, previews=(held_out or rows)[:SHOWN], answers=self.answers,
            preview_tokens=self.preview_tokens,
        )  # fmt: skip

    def settings(self, rows: Sequence[SpokenRow], base: LanguageBase) -> Mapping[str, Any]:
        return {} if self.language is None else {"language": self.language}

    def origin(self, rows: Sequence[SpokenRow], base: LanguageBase) -> Mapping[str, str]:
        return {} if self.language is None else {"language": self.language}
