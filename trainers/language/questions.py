"""Questions that previews ask, where a task's data has prompts."""

from __future__ import annotations

from collections.abc import Sequence

from studio.datasets.preferences import Answer
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Question
from studio.trainers.language.rows import short
from studio.trainers.language.texts import asked_text

__all__ = ["question_of", "questions_of"]


def question_of(answer: Answer, base: LanguageBase, wanted: bool = True) -> Question:
    """Returns the question that an answer answers.

    Args:
        answer: the answer. base: whose template writes. wanted: whether the caption says that it is the wanted one.
    """
    whole = answer.whole
    text = asked_text(whole.turns[: answer.given], whole.prompt, base, whole.line)
    return Question(text, whole.chat, short(answer.asked) + (f" (wanted: {short(whole.answer)})" if wanted else ""))


def questions_of(texts: Sequence[str], base: LanguageBase, *, chat: bool, system: str = "") -> list[Question]:
    """Returns questions that the user gives, asked as the samples ask.

    Args:
        texts: the questions. base: whose template writes. chat: whether the samples are conversations.
        system: the system prompt that all of them begin with; "" for none.

    Raises:
        DoesNotFit: one holds a mark of the tokenizer.
    """
    before = [{"role": "system", "content": system}] if system else []
    asked = [base.write([*before, {"role": "user", "content": text}], asking=True) if chat else text for text in texts]
    return [Question(asking, chat, text) for asking, text in zip(asked, texts, strict=True)]
