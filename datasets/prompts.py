"""Prompts that a model answers by itself while it is trained, with or without the right answer.

The forms of a record: ``{"prompt": "..."}``, plain text; ``{"prompt": [turns]}``, or ``messages``, a conversation that
ends with a turn of the user's; ``{"instruction": "...", "input": "..."}``, the same as one such turn. Each may have an
``answer``, which a reward compares with; of ``messages`` that end with the assistant's turn, and of an instruction with
an ``output``, these are the answer. A turn is ``{"role": "user", "content": "..."}``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from studio.datasets.preferences import turns_of
from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile

__all__ = ["Prompt", "prompt_of"]

ASKED: Final = ("prompt", "messages", "instruction")


@dataclass(frozen=True)
class Prompt(Sample):
    """What a model is asked.

    Args:
        line: its number in the source, from 1 on.
        turns: (role, content) of a conversation; empty for plain text.
        text: the plain text.
        answer: the right answer; None where none is known.
    """

    turns: tuple[tuple[str, str], ...] = ()
    text: str = ""
    answer: str | None = None

    @property
    def content(self) -> Any:
        return [self.turns, self.text, self.answer]

    @property
    def asked(self) -> str:
        """The last turn, or the plain text."""
        return self.turns[-1][1] if self.turns else self.text


def prompt_of(record: Record) -> tuple[Prompt, Collection[str]]:
    """Makes a prompt of a record.

    Raises:
        BadFile: it is of none of the forms, or of two of them, or a part is empty.

    Example:
        >>> prompt_of(Record(1, "x", {"prompt": "1 + 1 =", "answer": "2"}))[0].answer
        '2'
    """
    entry, where = record.fields, record.where
    there = [name for name in ASKED if name in entry]
    if not there:
        raise forms_missed(record, "prompt, messages or instruction, and maybe an answer", (*ASKED, "input", "answer"))
    if len(there) > 1:
        raise BadFile(f"{where}: it has {' and '.join(map(repr, there))}; which one is meant?")
    name = there[0]
    told = "output" if name == "instruction" and "answer" not in entry else "answer"
    answer = text_field(entry, told, where, answer=True) if entry.get(told) is not None else None
    known = (name, told)
    if name == "instruction":
        more = text_field(entry, "input", where, empty=True) if entry.get("input") is not None else ""
        parts = [text_field(entry, name, where), *([more] if more.strip() else [])]
        return Prompt(record.line, (("user", "\n\n".join(parts)),), answer=answer), (*known, "input")
    if name == "prompt" and isinstance(entry[name], str):
        return Prompt(record.line, text=text_field(entry, name, where), answer=answer), known
    turns = entry[name]
    if answer is None and isinstance(turns, list) and turns and _said_by_assistant(turns[-1]):
        answer, turns = text_field(turns[-1], "content", where, answer=True), turns[:-1]
    return Prompt(record.line, turns_of(turns, record), answer=answer), known


def _said_by_assistant(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant" and "content" in turn
