"""Code completion: what fills a hole in code, with the base's own marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.datasets.samples import Form
from studio.datasets.snippets import Snippet, snippet_of
from studio.errors import BadConfig
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Causal, Question
from studio.trainers.language.fim import asked, marks_of
from studio.trainers.language.rows import short
from studio.trainers.language.texts import TokenRow, encode, marked
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["Code"]

SHOWN: Final = 4  # holes that previews fill


@dataclass(frozen=True, kw_only=True)
class Code(TextTask[Snippet, TokenRow]):
    """Teaches a causal language model to fill holes in code.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.snippets` has the forms of a record, and
    :mod:`studio.trainers.language.fim` what is made of them. :class:`~studio.trainers.text_task.TextTask` has the other
    settings.

    Attributes:
        holes: how many are made in whole code; the same ones in every run.
        marks: what stands before prefix, suffix and middle; None: the base's own.
        answers: how many held-out holes are filled for the exact match; 0 measures the loss alone.
        preview_tokens: tokens of a preview's answer at most.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Code(base="model/", data="functions.jsonl", holes=8).task_name
        'code'
    """

    task_name: ClassVar[str] = "code"
    kind: ClassVar[str] = "causal-lm"
    least: ClassVar[Mapping[str, int]] = {"holes": 1, "answers": 0, "preview_tokens": 1}

    holes: int = 4
    marks: tuple[str, ...] | None = None
    answers: int = 100
    preview_tokens: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.marks is not None and (len(set(self.marks)) != 3 or "" in self.marks):
            raise BadConfig(f"marks={self.marks!r} must be three different texts: of prefix, suffix and middle")

    @property
    def form(self) -> Form[Snippet]:
        return snippet_of

    def look(self) -> Read[Snippet]:
        read = super().look()
        trained, kept = ([hole for one in some for hole in one.holes(self.holes)] for some in (read.trained, read.kept))
        return Read(read.found, trained, kept)

    def encode(self, sample: Snippet, base: LanguageBase, length: int) -> TokenRow:
        hole = next(iter(sample.holes(1)))
        return encode(asked(hole, marks_of(base, self.marks), base, length), base, length)

    def example(self, row: TokenRow, base: LanguageBase) -> str:
        return marked(row.sample, base)

    def call(self, sample: Snippet) -> Sequence[str]:
        marks = self.marks or ("PREFIX", "SUFFIX", "MIDDLE")
        hole = next(iter(sample.holes(1)))
        return "complete", "BASE", f"{marks[0]}{hole.prefix}{marks[1]}{hole.suffix}{marks[2]}"

    def lesson(self, shared: Shared, rows: Sequence[TokenRow], held_out: Sequence[TokenRow]) -> Causal:
        shown = [row.sample for row in (held_out or rows)[:SHOWN]]
        previews = [
            Question(one.prompt, False, f"{short(one.prompt, 200)} (wanted: {short(one.completion)})") for one in shown
        ]
        return Causal(
            **shared, samples=rows, held_out=held_out, previews=previews, answers=self.answers,
            preview_tokens=self.preview_tokens,
        )  # fmt: skip

    def settings(self, rows: Sequence[TokenRow], base: LanguageBase) -> Mapping[str, Any]:
        marks = marks_of(base, self.marks)
        return {"holes": self.holes, "marks": [marks.before, marks.behind, marks.hole]}

    def origin(self, rows: Sequence[TokenRow], base: LanguageBase) -> Mapping[str, str]:
        return {"form": "text"}
