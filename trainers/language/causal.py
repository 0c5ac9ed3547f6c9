"""The lesson on causal language models: answers given questions, measured on held-out samples."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.adapters.tokens.contract import TokenConfig
from studio.families.language import LanguageBase
from studio.trainers.language.choices import chosen
from studio.trainers.language.lesson import MEASURED, TokenLesson, exact_match
from studio.trainers.language.packing import packed
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.texts import IGNORED, TokenRow, batch, question

__all__ = ["Causal", "Question", "rehearsed_texts", "said"]


@dataclass(frozen=True)
class Question:
    """A question that previews ask.

    Args:
        text: the question as the model reads it.
        chat: whether it has a template's marks.
        caption: what the report says above the answer.
    """

    text: str
    chat: bool
    caption: str


@dataclass(kw_only=True)
class Causal(TokenLesson[TokenRow]):
    r"""An opened task on a causal language model.

    Args:
        previews: what previews ask.
        choices: all answers that there are, where the likeliest of them counts as what is said; none: whatever is said.
        packing: tokens of a row that holds several samples (:mod:`~studio.trainers.language.packing`); 0: every sample
            has a row of its own.
    """

    previews: Sequence[Question]
    choices: Sequence[str] = ()
    packing: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        takes = inspect.signature(self.model.forward).parameters
        self._keeps = "logits_to_keep" in takes and not isinstance(self.adapter, TokenConfig)

    def judged(self) -> dict[str, float]:
        """Returns which share of the held-out answers is exactly right."""
        samples, found = [row.sample for row in self.asked], dict[str, float]()
        if samples:
            made = self._answers([(question(one, self.base), one.chat) for one in samples], self.longest)
            found = exact_match(made, [one.answer for one in samples])
        if self.choices:
            some = [row.sample for row in self.held_out if not row.lost]
            asked = [(question(sample, self.base), sample.chat) for sample in some]
            found |= chosen(self.base, asked, [sample.answer for sample in some], self.choices, MEASURED)
        return found

    def preview(self) -> list[str]:
        """Answers the preview questions with the adapter as it is now, through the one path for texts."""
        return self._answers([(asked.text, asked.chat) for asked in self.previews], self.preview_tokens)

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [asked.caption for asked in self.previews]

    @cached_property
    def asked(self) -> list[TokenRow]:
        """The held-out samples that are answered: whole ones with something before their answer."""
        return [row for row in self.held_out if row.sample.asked and not row.lost][: self.answers]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest of their answers, and a few more, so that an answer that goes on is seen to."""
        return 4 + max(len(self.base.tokens(row.sample.answer, chat=True)[0]) for row in self.asked)

    def summed(self, rows: Sequence[TokenRow]) -> tuple[Tensor, int]:
        device = self.model.device
        if self.packing:
            tokens, places, labels = packed(rows, self.base.pad, self.packing, device)
            given = {"input_ids": tokens, "position_ids": places}
        else:
            tokens, mask, labels = batch(rows, self.base.pad, device)
            given = {"input_ids": tokens, "attention_mask": mask}
        wanted = labels[:, 1:]
        if self._keeps:  # the head computes the places alone at which a row learns
            learned = torch.tensor(_places(labels), device=device)
            logits = self.model(**given, use_cache=False, logits_to_keep=learned).logits
            wanted = wanted[:, learned]
        else:  # virtual tokens in front have logits too; the last T are those of the text
            logits = self.model(**given, use_cache=False).logits[:, -tokens.shape[1] : -1]
        kept = wanted != IGNORED
        return F.cross_entropy(logits[kept].float(), wanted[kept], reduction="sum"), int(kept.sum())

    def _answers(self, questions: Sequence[tuple[str, bool]], most: int) -> list[str]:
        return said(self.base, questions, most)


def rehearsed_texts(stand: Stand) -> Causal:
    """Returns the lesson on texts that say nothing.

    Args:
        stand: what it is rehearsed with.
    """
    return Causal(
        **stand.shared, samples=[stand.row(), stand.row(less=1)], held_out=[], previews=[], answers=0,
        preview_tokens=1,
    )  # fmt: skip


def _places(labels: Tensor) -> list[int]:
    """The places whose logits foretell a learned token of some row."""
    return [place for place, column in enumerate(labels[:, 1:].T.tolist()) if any(one != IGNORED for one in column)]


def said(base: LanguageBase, questions: Sequence[tuple[str, bool]], most: int) -> list[str]:
    """Returns the likeliest answers to questions with the blend that is on, through the one path for texts.

    Args:
        base: whose model answers. questions: each as the model reads it, and whether it has a template's marks.
        most: tokens of an answer at most.
    """
    from studio.pipelines.write import write

    found = [""] * len(questions)
    for chat in (True, False):
        places = [place for place, (_, form) in enumerate(questions) if form is chat]
        texts = [questions[place][0] for place in places]
        made = write(base, texts, chat=chat, max_new_tokens=most, batch_size=MEASURED)
        for place, (text, _, _) in zip(places, made, strict=True):
            found[place] = text
    return found
