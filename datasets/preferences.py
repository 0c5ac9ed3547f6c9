"""Preferences: of two answers to a prompt the better one, or of one answer whether it is good.

The forms of a comparison:

- ``{"prompt": "...", "chosen": "...", "rejected": "..."}``: plain texts, no template;
- ``{"prompt": [turns], "chosen": [turns], "rejected": [turns]}``: a conversation, and two ways in which it goes on; the
  answers may also be texts, which are one assistant turn each;
- ``{"chosen": [turns], "rejected": [turns]}``: two conversations that begin with the same turns, with a ``prompt``
  besides or without one; or two texts that begin with the same words.

The form of a verdict is ``{"prompt": ..., "completion": ..., "label": true}``, with texts or turns as above. A turn is
``{"role": "user", "content": "..."}``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Final

from studio.datasets import chat
from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile
from studio.shown import short

__all__ = ["Answer", "Comparison", "Verdict", "comparison_of", "turns_of", "verdict_of"]

PAIR: Final = ("chosen", "rejected")


@dataclass(frozen=True)
class Answer:
    """A prompt and one answer to it.

    Args:
        whole: both, as a conversation or as plain text.
        given: how many turns of a conversation are the prompt.
    """

    whole: chat.Sample
    given: int = 0

    @property
    def prompt(self) -> Any:
        """The prompt, as JSON has it."""
        return [self.whole.turns[: self.given], self.whole.prompt]

    @property
    def text(self) -> Any:
        """The answer, as JSON has it."""
        return [self.whole.turns[self.given :], self.whole.completion]

    @property
    def asked(self) -> str:
        """The text that the answer follows: the last turn of the prompt, or all of it."""
        return self.whole.turns[self.given - 1][1] if self.whole.turns else self.whole.prompt


@dataclass(frozen=True)
class Comparison(Sample):
    """Two answers to one prompt.

    Args:
        line: its number in the source, from 1 on. chosen: the better answer. rejected: the other one.
    """

    chosen: Answer
    rejected: Answer

    @property
    def content(self) -> Any:
        return [self.chosen.prompt, self.chosen.text, self.rejected.text]


@dataclass(frozen=True)
class Verdict(Sample):
    """An answer to a prompt, and whether it is good.

    Args:
        line: its number in the source, from 1 on. answer: the answer. good: whether it is one to give.
    """

    answer: Answer
    good: bool

    @property
    def content(self) -> Any:
        return [self.answer.prompt, self.answer.text, self.good]


def comparison_of(record: Record) -> tuple[Comparison, Collection[str]]:
    """Makes a comparison of a record.

    Raises:
        BadFile: it is of none of the forms, an answer is empty, both are equal, or they answer no common prompt.

    Example:
        >>> made, _ = comparison_of(Record(1, "x", {"chosen": "Q: 1 + 1? A: 2", "rejected": "Q: 1 + 1? A: 3"}))
        >>> made.chosen.whole.prompt, made.rejected.whole.completion
        ('Q: 1 + 1? A:', ' 3')
    """
    entry, where = record.fields, record.where
    if not all(name in entry for name in PAIR):
        if {"completion", "label"} <= set(entry):
            raise BadFile(
                f"{where}: it has one answer with a label, and two answers are compared; give chosen and rejected, or "
                "learn from labels with loss='kto'"
            )
        raise forms_missed(record, "chosen and rejected, with a prompt or a common beginning", ("prompt", *PAIR))
    if entry["chosen"] == entry["rejected"]:
        raise BadFile(f"{where}: chosen and rejected are equal, so there is nothing to prefer; take the pair out")
    known = ("prompt", *PAIR) if "prompt" in entry else PAIR
    if "prompt" not in entry or (isinstance(entry["prompt"], str) and isinstance(entry["chosen"], list)):
        chosen, rejected = _of_wholes(record)
    else:
        chosen, rejected = (_answer(record, entry["prompt"], name) for name in PAIR)
    if chosen.text == rejected.text:
        raise BadFile(f"{where}: chosen and rejected are equal, so there is nothing to prefer; take the pair out")
    return Comparison(record.line, chosen, rejected), known


def verdict_of(record: Record) -> tuple[Verdict, Collection[str]]:
    """Makes a verdict of a record.

    Raises:
        BadFile: it is of none of the forms, the answer is empty, or the label is neither true nor false.

    Example:
        >>> made, _ = verdict_of(Record(1, "x", {"prompt": "1 + 1 =", "completion": " 2", "label": True}))
        >>> made.answer.whole.completion, made.good
        (' 2', True)
    """
    entry, where = record.fields, record.where
    known = ("prompt", "completion", "label")
    if not all(name in entry for name in known):
        if all(name in entry for name in PAIR):
            raise BadFile(
                f"{where}: it has two answers, and loss='kto' learns from single ones with a label; compare them with "
                "loss='dpo', or give prompt, completion and label"
            )
        raise forms_missed(record, "prompt, completion and label", known)
    if not isinstance(entry["label"], bool):
        raise BadFile(f"{where}: label must be true or false, not {short(entry['label'])}")
    return Verdict(record.line, _answer(record, entry["prompt"], "completion"), entry["label"]), known


def turns_of(prompt: Any, record: Record) -> tuple[tuple[str, str], ...]:
    """Returns the turns of a prompt that a conversation begins with; its last one is the user's.

    Args:
        prompt: turns with a role and a content. record: where it stands.

    Raises:
        BadFile: it is no such list.
    """
    if not isinstance(prompt, list) or not prompt:
        raise BadFile(f"{record.where}: a prompt is a text or a list of turns, not {short(prompt)}")
    last = prompt[-1]
    if isinstance(last, dict) and last.get("role") != "user":
        raise BadFile(f"{record.where}: a prompt ends with a turn of the user's, not with the {last.get('role')}'s")
    # an answer is put behind it, so that all that holds for conversations is checked where it always is
    return _conversation(record, [*prompt, {"role": "assistant", "content": "..."}]).turns[:-1]


def _conversation(record: Record, turns: list[Any]) -> chat.Sample:
    return chat.sample_of(Record(record.line, record.where, {"messages": turns}))[0]


def _answer(record: Record, prompt: Any, name: str) -> Answer:
    """The answer of a field to a prompt that stands in a field of its own."""
    value = record.fields[name]
    if isinstance(prompt, str):
        return Answer(
            chat.Sample(
                record.line, prompt=text_field(record.fields, "prompt", record.where),
                completion=text_field(record.fields, name, record.where, answer=True),
            )
        )  # fmt: skip
    given = turns_of(prompt, record)
    if isinstance(value, str):
        value = [{"role": "assistant", "content": text_field(record.fields, name, record.where, answer=True)}]
    if not isinstance(value, list) or not value:
        raise BadFile(f"{record.where}: {name} must be a text or a list of turns, not {short(value)}")
    if isinstance(value[0], dict) and value[0].get("role") != "assistant":
        raise BadFile(f"{record.where}: {name} begins with a turn of the {value[0].get('role')}'s, not the assistant's")
    return Answer(_conversation(record, [*prompt, *value]), len(given))


def _of_wholes(record: Record) -> tuple[Answer, Answer]:
    """Two conversations, or two texts, that begin alike."""
    chosen, rejected = (record.fields[name] for name in PAIR)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _of_texts(record)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadFile(f"{record.where}: chosen and rejected must both be texts, or both lists of turns")
    wholes = [_conversation(record, turns) for turns in (chosen, rejected)]
    given = len(commonprefix([whole.turns for whole in wholes]))
    while given and wholes[0].turns[given - 1][0] != "user":  # answers that begin with equal turns
        given -= 1
    if not given:
        raise BadFile(f"{record.where}: chosen and rejected begin with other turns, so they answer no common prompt")
    prompt = record.fields.get("prompt")
    if prompt is not None and wholes[0].turns[given - 1][1] != prompt and wholes[0].turns[0][1] != prompt:
        raise BadFile(
            f"{record.where}: the prompt {short(prompt)} is not what the conversations begin with; leave it out, or "
            "give the same turns"
        )
    first, second = (Answer(whole, given) for whole in wholes)
    return first, second


def _of_texts(record: Record) -> tuple[Answer, Answer]:
    """Two texts: the prompt is what both begin with, up to the last place where a word ends in both."""
    texts = [text_field(record.fields, name, record.where, answer=True) for name in PAIR]
    alike = len(commonprefix(texts))
    ends = (place for place in range(alike, -1, -1) if all(text[place : place + 1].isspace() for text in texts))
    shared = texts[0][: next(ends, 0)].rstrip()
    if not shared:
        raise BadFile(f"{record.where}: chosen and rejected begin with other words, so they answer no common prompt")
    for name, text in zip(PAIR, texts, strict=True):
        if not text[len(shared) :].strip():
            raise BadFile(f"{record.where}: {name} has nothing behind what both begin with: its answer is empty")
    first, second = (Answer(chat.Sample(record.line, prompt=shared, completion=text[len(shared) :])) for text in texts)
    return first, second
