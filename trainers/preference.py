"""Preference tuning: a causal language model learns from answers that people, or programs, find better than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from studio.config import finite
from studio.datasets.preferences import Answer, Comparison, Verdict, comparison_of, verdict_of
from studio.datasets.samples import Form
from studio.errors import BadConfig, BadFile
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Question
from studio.trainers.language.kto import KTOLesson, VerdictRow, encode_verdict
from studio.trainers.language.preference import PAIR_LOSSES, ComparisonRow, PairwiseLesson, encode_comparison
from studio.trainers.language.questions import question_of, questions_of
from studio.trainers.language.rows import short
from studio.trainers.language.texts import marked, system_of
from studio.trainers.loop.task import Lesson
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["Preference"]

SHOWN: Final = 4  # questions that previews ask where none are given


@dataclass(frozen=True, kw_only=True)
class Preference(TextTask[Comparison | Verdict, ComparisonRow | VerdictRow]):
    """Teaches a causal language model to prefer the better ones of given answers.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.preferences` has the forms of a record, and
    :mod:`studio.trainers.language.preference_losses` the formulas. The reference that all losses but ORPO need is the
    base without the adapter; what it says is computed once, before training. Answers that a fine-tuned model shall stay
    close to are those of a base with that adapter baked in. :class:`~studio.trainers.text_task.TextTask` has the other
    settings.

    Attributes:
        loss: ``"dpo"``, ``"ipo"`` or ``"orpo"`` for pairs of answers, ``"kto"`` for single ones with labels.
        beta: how much is at stake per change; of DPO and KTO how close to the reference it stays, of IPO the paper's τ,
            of ORPO its λ.
        desirable, undesirable: how much good answers and others weigh in KTO.
        preview_prompts: what previews ask; None: the first few held-out prompts, or those of the data.
        preview_tokens: tokens of a preview's answer at most.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Preference(base="facts", data="pairs.jsonl", held_out=0.1).loss
        'dpo'
    """

    task_name: ClassVar[str] = "preference"
    kind: ClassVar[str] = "causal-lm"
    least: ClassVar[Mapping[str, int]] = {"preview_tokens": 1}

    loss: Literal["dpo", "ipo", "kto", "orpo"] = "dpo"
    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    preview_prompts: tuple[str, ...] | None = None
    preview_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "desirable", "undesirable"):
            if not (finite(getattr(self, name)) and getattr(self, name) > 0):
                raise BadConfig(f"{name}={getattr(self, name)!r}: {name} must be above 0")
        if self.loss != "kto" and (self.desirable, self.undesirable) != (1.0, 1.0):
            raise BadConfig(f"desirable and undesirable are weights of loss='kto', and the loss is {self.loss!r}")

    @property
    def form(self) -> Form[Comparison | Verdict]:
        return verdict_of if self.loss == "kto" else comparison_of

    def look(self) -> Read[Comparison | Verdict]:
        """Reads the data; of labels, both sides have to have both.

        Raises:
            BadFile: as :meth:`TextTask.look`, or all labels are equal.
        """
        read = super().look()
        for samples, what in ((read.trained, "data"), (read.kept, "what is held out")):
            labels = {sample.good for sample in samples if isinstance(sample, Verdict)}
            if len(labels) == 1:
                raise BadFile(
                    f"all {len(samples)} labels of {what} are {str(labels.pop()).lower()}: KTO weighs good answers "
                    "against others; give both, or learn the good ones with studio tune causal-lm"
                )
        return read

    def encode(self, sample: Comparison | Verdict, base: LanguageBase, length: int) -> ComparisonRow | VerdictRow:
        if isinstance(sample, Verdict):
            return encode_verdict(sample, base, length)
        return encode_comparison(sample, base, length)

    def example(self, row: ComparisonRow | VerdictRow, base: LanguageBase) -> str:
        if isinstance(row, VerdictRow):
            answer = row.sample.answer
            return f"{marked(answer.whole, base, answer.given)} ({'good' if row.sample.good else 'not good'})"
        chosen, rejected = row.sample.chosen, row.sample.rejected
        return (
            f"{marked(chosen.whole, base, chosen.given)} rather than {marked(rejected.whole, base, rejected.given)}"
        )  # fmt: skip

    def call(self, sample: Comparison | Verdict) -> Sequence[str]:
        return "complete", "BASE", short(_wanted(sample).asked)

    def lesson(
        self, shared: Shared, rows: Sequence[ComparisonRow | VerdictRow], held_out: Sequence[ComparisonRow | VerdictRow]
    ) -> Lesson:
        more: dict[str, Any] = {
            "samples": rows, "held_out": held_out, "previews": self._previews(shared["base"], held_out or rows),
            "preview_tokens": self.preview_tokens, "beta": self.beta,
        }  # fmt: skip
        if self.loss == "kto":
            return KTOLesson(
                **shared, **more, length=shared["settings"]["max_length"], desirable=self.desirable,
                undesirable=self.undesirable,
            )  # fmt: skip
        return PairwiseLesson(**shared, **more, loss_of=PAIR_LOSSES[self.loss])

    def settings(self, rows: Sequence[ComparisonRow | VerdictRow], base: LanguageBase) -> Mapping[str, Any]:
        own = {"loss": self.loss, "beta": self.beta}
        return own | ({"desirable": self.desirable, "undesirable": self.undesirable} if self.loss == "kto" else {})

    def origin(self, rows: Sequence[ComparisonRow | VerdictRow], base: LanguageBase) -> Mapping[str, str]:
        wholes = [_wanted(row.sample).whole for row in rows]
        form, system = "chat" if any(whole.chat for whole in wholes) else "text", system_of(wholes)
        return {"form": form, "loss": self.loss, **({"system": system} if system else {})}

    def _previews(self, base: LanguageBase, rows: Sequence[ComparisonRow | VerdictRow]) -> list[Question]:
        if self.preview_prompts is None:
            shown = {row.sample.digest: row.sample for row in rows[:SHOWN]}.values()
            return [question_of(_wanted(one), base, not isinstance(one, Verdict) or one.good) for one in shown]
        wholes = [_wanted(row.sample).whole for row in rows]
        return questions_of(self.preview_prompts, base, chat=wholes[0].chat, system=system_of(wholes))


def _wanted(sample: Comparison | Verdict) -> Answer:
    return sample.answer if isinstance(sample, Verdict) else sample.chosen
