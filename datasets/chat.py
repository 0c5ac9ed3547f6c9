"""Text samples: one JSON object per line.

Four forms of a line, which may be mixed:

- ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``: a conversation with
  the roles system, user and assistant; every assistant turn is learned;
- ``{"instruction": "...", "input": "...", "output": "..."}``: the same as a user turn (``input``, if there is any,
  after an empty line) and an assistant turn;
- ``{"prompt": "...", "completion": "..."}``: plain text, no template; the completion is learned;
- ``{"text": "..."}``: plain text, all of which is learned.

How they become token numbers is in :mod:`studio.trainers.language.texts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from studio.datasets.captions import LINE_END, MARKS
from studio.errors import BadFile, nearest
from studio.given import given_path, is_blank, parse_json, read_given

__all__ = ["Sample", "Samples", "read_samples", "samples_digest"]

ROLES: Final = ("system", "user", "assistant")
FORMS: Final = (("messages",), ("instruction", "output"), ("prompt", "completion"), ("text",))


@dataclass(frozen=True)
class Sample:
    """One line of a data set.

    Args:
        line: its number in the file, from 1 on.
        turns: (role, content) of a conversation; empty for plain text.
        prompt: plain text that is given, before
        completion: plain text that is learned.
    """

    line: int
    turns: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""

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

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content."""
        return hashlib.sha256(json.dumps([self.turns, self.prompt, self.completion]).encode()).hexdigest()


@dataclass(frozen=True)
class Samples:
    """The samples of a file.

    Args:
        file: where they are from.
        items: the samples, in the file's order.
        unused: fields of the lines that say nothing about the text ("id", "source"), with the number of lines.
    """

    file: Path
    items: tuple[Sample, ...]
    unused: dict[str, int] = field(default_factory=dict)


def samples_digest(items: Sequence[Sample]) -> str:
    """SHA-256 (hex) over samples in order."""
    return hashlib.sha256("\n".join(sample.digest for sample in items).encode()).hexdigest()


def read_samples(file: str | Path) -> Samples:
    """Reads a JSONL file; every line is checked before anything is trained.

    Raises:
        BadFile: the file cannot be read, has no sample, or a line is not of one of the forms, has an empty part or no
            answer; the line's number is told.
    """
    file = given_path(file)
    text = _text_of(file)
    items: list[Sample] = []
    unused: dict[str, int] = {}
    for number, content in enumerate(LINE_END.split(text), 1):
        if content.strip():
            sample, rest = _sample(content, number, f"{file}, line {number}")
            items.append(sample)
            for name in rest:
                unused[name] = unused.get(name, 0) + 1
    if not items:
        raise BadFile(f"{file} has no sample: give one JSON object per line")
    return Samples(file, tuple(items), unused)


def _text_of(file: Path) -> str:
    """Reads UTF-8, with a mark or without, or UTF-16 with its mark."""
    try:
        data = read_given(file, "data-bytes")
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror}") from problem
    except BadFile as problem:
        hint = "; name a JSONL file, with one JSON object per line" if file.is_dir() else ""
        raise BadFile(f"{file} {problem}{hint}") from None
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise BadFile(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def _sample(line: str, number: int, where: str) -> tuple[Sample, list[str]]:
    try:
        entry = parse_json(line)
    except ValueError as problem:
        array = number == 1 and line.lstrip().startswith("[")
        hint = "this is a JSON array; write one object per line instead" if array else str(problem)
        raise BadFile(f"{where}: not a JSON object: {hint}") from None
    if not isinstance(entry, dict):
        raise BadFile(f"{where}: a sample is a JSON object, not {_short(entry)}")
    form = next((form for form in FORMS if all(name in entry for name in form)), None)
    if form is None:
        raise BadFile(f"{where}: {_no_form(entry)}")
    others = [name for other in FORMS if other != form and all(name in entry for name in other) for name in other]
    if others:
        raise BadFile(f"{where}: it has {' and '.join(form)} and also {' and '.join(others)}; which one is meant?")
    if form[0] == "messages":
        sample = Sample(number, _turns(entry["messages"], where))
    elif form[0] == "instruction":
        given, more = _text(entry, "instruction", where), entry.get("input")
        more = _text(entry, "input", where, empty=True) if more is not None else ""
        asked = f"{given}\n\n{more}" if more.strip() else given
        sample = Sample(number, (("user", asked), ("assistant", _text(entry, "output", where, answer=True))))
    elif form[0] == "prompt":
        completion = _text(entry, "completion", where, answer=True)
        sample = Sample(number, prompt=_text(entry, "prompt", where, empty=True), completion=completion)
    else:
        sample = Sample(number, completion=_text(entry, "text", where))
    known = (*form, "input") if form[0] == "instruction" else form
    return sample, [name for name in entry if name not in known]


def _no_form(entry: dict[str, Any]) -> str:
    fields = [name for form in FORMS for name in form] + ["input"]
    forms = "messages; instruction and output; prompt and completion; or text"
    for form in FORMS[1:3]:
        if form[0] in entry:
            return f"the sample has no answer: {form[0]!r} is there and {form[1]!r} is not"
    close = [(name, nearest(name, fields, 1)[0]) for name in entry if name not in fields]
    hint = f"; did you mean {close[0][1]!r} by {close[0][0]!r}?" if close else ""
    return f"a sample has {forms}; found: {', '.join(map(repr, entry)) or 'nothing'}{hint}"


def _turns(messages: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise BadFile(f"{where}: messages must be a list of turns, not {_short(messages)}")
    turns = []
    for place, message in enumerate(messages, 1):
        here = f"{where}, turn {place}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise BadFile(f"{here}: a turn has a role and a content, not {_short(message)}")
        others = sorted(set(message) - {"role", "content"})
        if others:
            raise BadFile(f"{here}: a turn has a role and a content; {others[0]!r} would not be used")
        role = message["role"]
        if role not in ROLES:
            close = nearest(str(role), ROLES, 1)[0]
            raise BadFile(f"{here}: there is no role {role!r}; did you mean {close!r}? (roles: {', '.join(ROLES)})")
        if role == "system" and place > 1:
            raise BadFile(f"{here}: a system turn stands first or nowhere")
        turns.append((role, _text(message, "content", here, answer=role == "assistant")))
    if turns[-1][0] != "assistant":
        raise BadFile(f"{where}: the sample has no answer: its last turn is the {turns[-1][0]}'s, not the assistant's")
    if next(role for role, _ in turns if role != "system") == "assistant":
        raise BadFile(f'{where}: the conversation begins with an answer; use {{"text": ...}} for plain text')
    return tuple(turns)


def _text(entry: dict[str, Any], name: str, where: str, *, answer: bool = False, empty: bool = False) -> str:
    value = entry[name]
    if not isinstance(value, str):
        raise BadFile(f"{where}: {name} must be a text, not {_short(value)}")
    if not empty and is_blank(value):
        raise BadFile(f"{where}: {'the sample has no answer: ' if answer else ''}{name} is empty")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
