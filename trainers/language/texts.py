"""Text samples as token numbers, with what is learned marked: the answers, each with the mark that ends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import torch
from torch import Tensor

from studio.errors import BadFile, DoesNotFit
from studio.families.language import LanguageBase

if TYPE_CHECKING:
    from studio.datasets.chat import Sample

__all__ = ["IGNORED", "TokenRow", "asked_text", "batch", "encode", "marked", "question", "render", "system_of"]

Turns: TypeAlias = "Sequence[tuple[str, str]]"  # (role, content)

IGNORED: Final = -100
"""The label of a token that does not count in the loss."""


@dataclass(frozen=True)
class TokenRow:
    """A sample as token numbers.

    Args:
        sample: what it is of.
        tokens: the token numbers.
        learned: for every token, whether it counts in the loss.
        lost: how many tokens were cut off at the end.
    """

    sample: Sample
    tokens: tuple[int, ...]
    learned: tuple[bool, ...]
    lost: int = 0

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.tokens)

    @property
    def counted(self) -> int:
        """Its learned tokens; the first of a text is foretold by nothing."""
        return sum(self.learned[1:])

    def ends(self, base: LanguageBase) -> bool:
        """Whether the last learned token ends an answer."""
        last = [token for token, learned in zip(self.tokens, self.learned, strict=True) if learned][-1:]
        return bool(last) and last[0] in base.ends


def render(sample: Sample, base: LanguageBase, given: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """Writes a sample as one text and marks what is learned: the answers, each with its end.

    An end is what the base stops at: the tokenizer's end token, one of the model's own, or the mark that the chat
    template writes behind an answer.

    Args:
        sample: a conversation or plain text.
        base: whose chat template writes.
        given: how many turns of a conversation are given, so that no answer among them is learned.

    Returns:
        The text, and spans ``(begin, end)`` in characters.

    Raises:
        BadFile: the chat template refuses the conversation or writes its beginning otherwise than the whole, or a turn
            holds one of the tokenizer's marks.
    """
    ends = base.end_marks
    end = ends[0] if ends else ""
    if not sample.chat:
        text = f"{sample.prompt}{sample.completion}{end}"
        return text, [(len(sample.prompt), len(text))]
    turns, line = sample.turns, sample.line
    text, spans = _write(turns, base, line, asking=False), []
    for index, (role, content) in enumerate(turns):
        if role != "assistant" or index < given:
            continue
        before = _write(turns[:index], base, line, asking=True)
        through = _shared(_write(turns[: index + 1], base, line, asking=False), text, ends)
        found = through.find(content.strip(), len(before))
        if not (text.startswith(before) and text.startswith(through) and found >= 0):
            raise BadFile(
                f"line {line}: the chat template writes turn {index + 1} otherwise when more turns follow, or "
                "leaves a part of it out, so that the answer cannot be found in the whole; split the conversation"
            )
        said = found + len(content.strip())
        spans.append((len(before), _through_end(through, said, ends)))
    if end and not text[: spans[-1][1]].endswith(ends):  # a template without an end: nothing would stop the answer
        text = text[: spans[-1][1]] + end
        spans[-1] = (spans[-1][0], len(text))
    return text, spans


def _shared(through: str, text: str, ends: Sequence[str]) -> str:
    """Takes the mark off that some templates put behind a conversation as a whole (Phi-3), where ``text`` goes on."""
    short = [through.removesuffix(end) for end in ends if through.endswith(end)]
    return through if text.startswith(through) else next((one for one in short if text.startswith(one)), through)


def _through_end(text: str, said: int, ends: Sequence[str]) -> int:
    """Returns the place behind the first end mark from ``said`` on; ``said`` where there is none."""
    found = [(place, -len(end)) for end in ends if (place := text.find(end, said)) >= 0]
    return min(found)[0] - min(found)[1] if found else said


def question(sample: Sample, base: LanguageBase) -> str:
    """Returns what stands before the last answer: what a model is asked with."""
    return asked_text(sample.turns[:-1], sample.prompt, base, sample.line)


def asked_text(turns: Turns, text: str, base: LanguageBase, line: int) -> str:
    """Returns a prompt as the model reads it.

    Args:
        turns: of a conversation; none for plain text. text: the plain text. base: whose template writes.
        line: where the prompt stands.

    Raises:
        BadFile: the template refuses it.
    """
    return _write(turns, base, line, asking=True) if turns else text


class _Told(Protocol):
    """A sample that may be a conversation."""

    @property
    def turns(self) -> Turns:
        """Of a conversation; none of plain text."""


def system_of(samples: Iterable[_Told]) -> str:
    """Returns the system prompt that every conversation of a data set begins with; "" where they differ.

    Example:
        >>> from studio.datasets.chat import Sample
        >>> terse = Sample(1, (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?")))
        >>> system_of([terse]), system_of([terse, Sample(2, terse.turns[1:])])
        ('Be brief.', '')
    """
    first = {sample.turns[0] for sample in samples if sample.turns}
    role, text = first.pop() if len(first) == 1 else ("", "")
    return text if role == "system" else ""


def encode(sample: Sample, base: LanguageBase, length: int, given: int = 0) -> TokenRow:
    """Turns a sample into token numbers, at most ``length`` of them, with the learned ones marked.

    A token counts in the loss if any of its characters does.

    Args:
        sample, base, given: as for :func:`render`. length: tokens at most.

    Raises:
        BadFile: as :func:`render`.
    """
    text, spans = render(sample, base, given)
    tokens, places = base.tokens(text, chat=sample.chat)
    learned = [any(begin < stop and start < end for start, stop in spans) for begin, end in places]
    return TokenRow(sample, tuple(tokens[:length]), tuple(learned[:length]), max(len(tokens) - length, 0))


def marked(sample: Sample, base: LanguageBase, given: int = 0) -> str:
    """Returns a sample as the model reads it, with ``⟦`` and ``⟧`` around what is learned.

    Args:
        sample, base, given: as for :func:`render`.
    """
    text, spans = render(sample, base, given)
    begins = base.begins(text)
    for begin, end in reversed(spans):
        text = f"{text[:begin]}⟦{text[begin:end]}⟧{text[end:]}"
    return begins + text


def batch(rows: Sequence[TokenRow], pad: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Puts samples into one batch, padded on the right whatever side the tokenizer pads on.

    Args:
        rows: the samples. pad: the token that fills up; it may be the end token, since labels go by place.
        device: where to.

    Returns:
        Token numbers, attention mask and labels, each ``(B, T)``, int64; labels that do not count are
        :data:`IGNORED`.
    """
    length = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED)
    for index, row in enumerate(rows):
        numbers, size = torch.tensor(row.tokens), len(row.tokens)
        tokens[index, :size], mask[index, :size] = numbers, 1
        labels[index, :size] = torch.where(torch.tensor(row.learned), numbers, IGNORED)
    return tokens.to(device), mask.to(device), labels.to(device)


def _write(turns: Turns, base: LanguageBase, line: int, *, asking: bool) -> str:
    try:
        return base.write([{"role": role, "content": content} for role, content in turns], asking=asking)
    except DoesNotFit as problem:
        raise BadFile(f"line {line}: {problem}") from problem
