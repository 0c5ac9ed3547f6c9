"""Conversations and plain texts, for causal language models.

The forms of a record, which may be mixed:

- ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``: a conversation with
  the roles system, user and assistant; every assistant turn is learned;
- ``{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}``: the same in ShareGPT's
  words;
- ``{"instruction": "...", "input": "...", "output": "..."}``: the same as a user turn (``input``, if there is any,
  after an empty line) and an assistant turn;
- ``{"prompt": "...", "completion": "..."}``: plain text, no template; the completion is learned;
- ``{"text": "..."}``: plain text, all of which is learned.

How they become token numbers is in :mod:`studio.trainers.language.texts`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studio.datasets import samples
from studio.datasets.records import Record
from studio.datasets.samples import Samples, forms_missed, samples_digest, text_field
from studio.datasets.tables import with_value
from studio.errors import BadFile, nearest
from studio.shown import short

__all__ = ["Sample", "Samples", "read_samples", "sample_of", "samples_digest"]

ROLES: Final = ("system", "user", "assistant")
SHAREGPT: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
FORMS: Final = (("messages",), ("conversations",), ("instruction", "output"), ("prompt", "completion"), ("text",))


@dataclass(frozen=True)
class Sample(samples.Sample):
    """A conversation, or plain text.

    Args:
        line: its number in the source, from 1 on.
        turns: (role, content) of a conversation; empty for plain text.
        prompt: plain text that is given, before
        completion: plain text that is learned.
    """

    turns: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""

    @property
    def content(self) -> Any:
        return [self.turns, self.prompt, self.completion]

    @property
    def given(self) -> Any:
        return [self.turns[:-1], self.prompt] if self.asked else None

    @property
    def chat(self) -> bool:
        """Whether it is a conversation, to be written with the chat template."""
        return bool(self.turns)

    @property
    def answer(self) -> str:
        """The text that ends the sample: the last assistant turn, or the completion."""
        return self.turns[-1][1] if self.turns else self.completion

    @property
    def asked(self) -> bool:
        """Whether the answer has something before it, so that a model can be asked for it."""
        return bool(self.turns or self.prompt)


def read_samples(file: str | Path) -> Samples[Sample]:
    """Reads conversations and plain texts; every line is checked before anything is trained.

    Raises:
        BadFile: the file cannot be read, has no sample, or a line is not of one of the forms, has an empty part or no
            answer; the line's number is told.
    """
    return samples.read_samples(file, sample_of)


def sample_of(record: Record) -> tuple[Sample, Collection[str]]:
    """Makes a sample of a record.

    Raises:
        BadFile: it is not of one of the forms, has an empty part or no answer.
    """
    entry, number, where = record.fields, record.line, record.where
    form = next((form for form in FORMS if all(name in entry for name in form)), None)
    if form is None:
        raise _no_form(record)
    others = [name for other in FORMS if other != form and all(name in entry for name in other) for name in other]
    if others:
        raise BadFile(f"{where}: it has {' and '.join(form)} and also {' and '.join(others)}; which one is meant?")
    if form[0] == "messages":
        sample = Sample(number, _turns(entry["messages"], where))
    elif form[0] == "conversations":
        sample = Sample(number, _turns(_renamed(entry["conversations"], where), where))
    elif form[0] == "instruction":
        given, more = text_field(entry, "instruction", where), entry.get("input")
        more = text_field(entry, "input", where, empty=True) if more is not None else ""
        asked = f"{given}\n\n{more}" if more.strip() else given
        sample = Sample(number, (("user", asked), ("assistant", text_field(entry, "output", where, answer=True))))
    elif form[0] == "prompt":
        completion = text_field(entry, "completion", where, answer=True)
        sample = Sample(number, prompt=text_field(entry, "prompt", where, empty=True), completion=completion)
    else:
        sample = Sample(number, completion=text_field(entry, "text", where))
    return sample, (*form, "input") if form[0] == "instruction" else form


def _no_form(record: Record) -> BadFile:
    for form in FORMS[2:4]:
        if form[0] in record.fields:
            there, gone = form
            return BadFile(f"{record.where}: the sample has no answer: {there!r} is there and {gone!r} is not")
    wanted = "messages; conversations; instruction and output; prompt and completion; or text"
    return forms_missed(record, wanted, [*(name for form in FORMS for name in form), "input"])


def _renamed(turns: Any, where: str) -> Any:
    """ShareGPT's turns in the words of messages; what is none is left for them to refuse."""
    if not isinstance(turns, list):
        raise BadFile(f"{where}: conversations must be a list of turns, not {short(turns)}")
    return [
        {"role": SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"]}
        if isinstance(turn, dict) and {"from", "value"} <= set(turn) and isinstance(turn["from"], str)
        else turn
        for turn in turns
    ]


def _turns(messages: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise BadFile(f"{where}: messages must be a list of turns, not {short(messages)}")
    turns = []
    for place, message in enumerate(messages, 1):
        here = f"{where}, turn {place}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise BadFile(f"{here}: a turn has a role and a content, not {short(message)}")
        others = sorted(str(name) for name in with_value(message) if name not in ("role", "content"))
        if others:
            raise BadFile(f"{here}: a turn has a role and a content; {others[0]!r} would not be used")
        role = message["role"]
        if role not in ROLES:
            close = nearest(str(role), ROLES, 1)[0]
            raise BadFile(f"{here}: there is no role {role!r}; did you mean {close!r}? (roles: {', '.join(ROLES)})")
        if role == "system" and place > 1:
            raise BadFile(f"{here}: a system turn stands first or nowhere")
        turns.append((role, text_field(message, "content", here, answer=role == "assistant")))
    if turns[-1][0] != "assistant":
        raise BadFile(f"{where}: the sample has no answer: its last turn is the {turns[-1][0]}'s, not the assistant's")
    if next(role for role, _ in turns if role != "system") == "assistant":
        raise BadFile(f'{where}: the conversation begins with an answer; use {{"text": ...}} for plain text')
    return tuple(turns)
