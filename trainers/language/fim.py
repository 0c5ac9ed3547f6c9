"""Fill in the middle: code with a hole, in the order and with the marks that a base was made with.

A sample is read as ``PREFIX before SUFFIX behind MIDDLE`` and what fills the hole is learned, with the base's end: the
order "prefix, suffix, middle" in which code models are asked for it.

References:
    | Efficient Training of Language Models to Fill in the Middle (Bavarian et al., 2022), arXiv:2207.14255
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from studio.datasets.chat import Sample
from studio.datasets.snippets import Snippet
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase

__all__ = ["MARKS", "Marks", "asked", "marks_of"]


@dataclass(frozen=True)
class Marks:
    """What stands before each part. before, behind, hole: the marks of prefix, suffix and middle."""

    before: str
    behind: str
    hole: str


MARKS: Final = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Codestral Mamba
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, SmolLM
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4
)
"""The marks of the code models that are known, the first that a tokenizer has all of is taken."""


def marks_of(base: LanguageBase, given: Sequence[str] | None = None) -> Marks:
    """Returns the marks that a base fills holes by.

    Args:
        base: the base. given: marks of prefix, suffix and middle, for a base that has none or unknown ones; any text.

    Raises:
        DoesNotFit: it has none and none are given, or its tokenizer reads a mark as several tokens.
    """
    if given is not None:
        return Marks(*given)
    known: dict[str, Any] = base.tokenizer.get_vocab()
    found = next((marks for marks in MARKS if all(mark in known for mark in _all(marks))), None)
    if found is None:
        raise DoesNotFit(
            f"{base.id} has no marks to fill in the middle by (such as {MARKS[0].before}): take a code model that has, "
            'or teach it some, marks=("<PRE>", "<SUF>", "<MID>")'
        )
    for mark in _all(found):
        if base.tokenizer(mark, add_special_tokens=False)["input_ids"] != [known[mark]]:
            raise DoesNotFit(f"the tokenizer of {base.id} has the mark {mark!r} and does not read it as one token")
    return found


def _all(marks: Marks) -> tuple[str, str, str]:
    return marks.before, marks.behind, marks.hole


def asked(snippet: Snippet, marks: Marks, base: LanguageBase, length: int) -> Sample:
    """Writes a snippet as a text whose last part is learned.

    What is too long loses the beginning of what stands before the hole and the end of what stands behind it, both as
    far from the hole as can be; what fills it stays.

    Args:
        snippet: the snippet. marks: the base's. base: whose tokenizer counts. length: tokens of the whole at most.
    """
    counted = [_tokens(base, text) for text in (snippet.prefix, snippet.suffix, snippet.middle)]
    spare = len(base.beginning) + sum(len(_tokens(base, mark)) for mark in _all(marks)) + 1  # and the end
    room = max(length - spare - len(counted[2]), 0)
    before, behind = _shared(len(counted[0]), len(counted[1]), room)
    prefix = snippet.prefix[counted[0][-before][0] :] if before else ""
    suffix = snippet.suffix[: counted[1][behind - 1][1]] if behind else ""
    prompt = f"{marks.before}{prefix}{marks.behind}{suffix}{marks.hole}"
    return Sample(snippet.line, prompt=prompt, completion=snippet.middle)


def _shared(before: int, behind: int, room: int) -> tuple[int, int]:
    """Shares room between what stands before a hole and behind it: halves, and what one does not need to the other."""
    first = min(before, max(room // 2, room - behind))
    return first, min(behind, room - first)


def _tokens(base: LanguageBase, text: str) -> list[tuple[int, int]]:
    """The characters ``(begin, end)`` of each token of a text by itself."""
    coded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [(int(begin), int(end)) for begin, end in coded["offset_mapping"]]
