"""Causal language models: questions and answers, conversations, or plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.adapters.tokens.contract import TokenConfig
from studio.datasets.chat import Sample, sample_of
from studio.datasets.records import source_name
from studio.datasets.samples import Form
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Causal, Question
from studio.trainers.language.choices import choices_of
from studio.trainers.language.packing import check_packs
from studio.trainers.language.questions import questions_of
from studio.trainers.language.rows import short
from studio.trainers.language.texts import TokenRow, encode, marked, question, render, system_of
from studio.trainers.text_task import Shared, TextTask

__all__ = ["CausalLM"]

SHOWN: Final = 4  # questions that previews ask where none are given


@dataclass(frozen=True, kw_only=True)
class CausalLM(TextTask[Sample, TokenRow]):
    """Teaches a causal language model to answer as the samples do.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.chat` has the forms of a line of data. The answers
    are learned, each with the end token; questions are only read. :class:`~studio.trainers.text_task.TextTask` has the
    other settings.

    Attributes:
        answers: how many held-out samples are answered for the exact match; 0 measures the loss alone.
        choices: the different answers of the data are labels (at most 64): the likeliest of them is measured, and said
            by ``studio complete``.
        preview_prompts: what previews ask; None: the first few held-out questions, or those of the data.
        preview_tokens: tokens of a preview's answer at most.
        packing: several samples stand in a row, none of which attends to another: the same training with less filling,
            for samples of very different lengths (:mod:`studio.trainers.language.packing`).

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> CausalLM(base="facts", data="questions.jsonl", held_out=0.1).task_name
        'causal-lm'
    """

    task_name: ClassVar[str] = "causal-lm"
    kind: ClassVar[str] = "causal-lm"
    least: ClassVar[Mapping[str, int]] = {"answers": 0, "preview_tokens": 1}

    answers: int = 200
    choices: bool = False
    preview_prompts: tuple[str, ...] | None = None
    preview_tokens: int = 32
    packing: bool = False

    @property
    def form(self) -> Form[Sample]:
        return sample_of

    def encode(self, sample: Sample, base: LanguageBase, length: int) -> TokenRow:
        return encode(sample, base, length)

    def example(self, row: TokenRow, base: LanguageBase) -> str:
        return marked(row.sample, base)

    def call(self, sample: Sample) -> Sequence[str]:
        return "complete", "BASE", _asked(sample)

    def lesson(self, shared: Shared, rows: Sequence[TokenRow], held_out: Sequence[TokenRow]) -> Causal:
        return Causal(
            **shared, samples=rows, held_out=held_out, previews=self._previews(shared["base"], held_out or rows),
            answers=self.answers, preview_tokens=self.preview_tokens, packing=self._packing(shared, rows),
            choices=self._choices(rows),
        )  # fmt: skip

    def _packing(self, shared: Shared, rows: Sequence[TokenRow]) -> int:
        """Returns the tokens of a packed row, 0 where nothing is packed."""
        if not self.packing:
            return 0
        if isinstance(shared["adapter"], TokenConfig):
            raise DoesNotFit(
                f"packing: {shared['adapter'].method} puts virtual tokens before a row, and packed samples share one: "
                "leave packing out"
            )
        check_packs(shared["base"], rows)
        return int(shared["settings"]["max_length"])

    def settings(self, rows: Sequence[TokenRow], base: LanguageBase) -> Mapping[str, Any]:
        packing = {"packing": True} if self.packing else {}
        return _marks(rows, base) | packing | ({"choices": list(self._choices(rows))} if self.choices else {})

    def origin(self, rows: Sequence[TokenRow], base: LanguageBase) -> Mapping[str, str]:
        system = system_of([row.sample for row in rows])
        form = "chat" if any(row.sample.chat for row in rows) else "text"
        own = {"labels": json.dumps(self._choices(rows))} if self.choices else {}
        return {"form": form, **({"system": system} if system else {}), **own}

    def _choices(self, rows: Sequence[TokenRow]) -> tuple[str, ...]:
        return choices_of((row.sample.answer for row in rows), source_name(self.data)) if self.choices else ()

    def _previews(self, base: LanguageBase, rows: Sequence[TokenRow]) -> list[Question]:
        if self.preview_prompts is None:
            some = [row.sample for row in rows if row.sample.asked][:SHOWN]
            return [
                Question(question(sample, base), sample.chat, f"{_last(sample)} (wanted: {short(sample.answer)})")
                for sample in some
            ]
        system = system_of([row.sample for row in rows])
        return questions_of(self.preview_prompts, base, chat=rows[0].sample.chat, system=system)


def _marks(rows: Sequence[TokenRow], base: LanguageBase) -> dict[str, Any]:
    """What earlier versions left out of conversations: with it, a run that they began would learn other texts."""
    chats = [render(row.sample, base) for row in rows if row.sample.chat]
    begins = {base.begins(text) for text, _ in chats} - {""}
    usual = base.tokenizer.eos_token or ""
    ends = {end for text, spans in chats for _, at in spans for end in base.end_marks if text[:at].endswith(end)}
    marks = {"begins_with": sorted(begins), "ends_with": sorted(ends - {usual})}
    return {name: found for name, found in marks.items() if found}


def _asked(sample: Sample) -> str:
    """What a sample asks, to try the adapter with."""
    return " ".join((sample.turns[-2][1] if sample.chat else sample.prompt).split()) or "..."


def _last(sample: Sample) -> str:
    return short(sample.turns[-2][1] if sample.chat else sample.prompt)
