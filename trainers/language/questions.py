"""Questions that previews ask, where a task's data has prompts."""

from __future__ import annotations

from collections.abc import Sequence

from studio.datasets.preferences import Answer
from studio.errors import BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Question
from studio.trainers.language.rows import short

__all__ = ["asked_text", "question_of", "questions_of"]


def asked_text(turns: Sequence[tuple[str, str]], text: str, base: LanguageBase, line: int) -> str:
    """Returns a prompt as the model reads it.

    Args:
        turns: of a conversation; none for plain text. text: the plain text. base: whose template writes.
        line: where the prompt stands.

    Raises:
        BadFile: the template refuses it.
    """
    if not turns:
        return text
    try:
        return base.write([{"role": role, "content": content} for role, content in turns], asking=True)
    except DoesNotFit as problem:
        raise BadFile(f"line {line}: {problem}") from problem


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
    """
    before = (("system", system),) if system else ()
    return [
        Question(asked_text((*before, ("user", text)) if chat else (), text, base, 0), chat, text) for text in texts
    ]
