"""What a caller says and the drawing does not heed: each in a sentence, so that it is not silently without effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from studio.families import Family
from studio.pipelines.prompting.brackets import script_of
from studio.shown import shown

__all__ = ["Remark", "remarks"]

# (word:1.2) and ((word)): weights of A1111, ComfyUI and InvokeAI
_EMPHASIS: Final = re.compile(r"(?<!\\)(?:\([^()\[\]<>]*:\s*\d*\.?\d+\s*\)|\({2,}[^()]+\){2,})")
_AND: Final = re.compile(r"\bAND\b")


class Remark(UserWarning):
    """Something that was asked for has no effect, or is likely to spoil the picture."""


def remarks(
    prompts: Sequence[str],
    *,
    negative: str | None,
    guidance: float,
    family: Family | None = None,
    steps: int | None = None,
) -> list[str]:
    """Returns a sentence for each thing that has no effect.

    Args:
        prompts: the prompts, without tags and choices.
        negative: what guidance leads away from.
        guidance: the guidance scale.
        family: what draws; None: one that reads all there is.
        steps: denoising steps; None: enough.

    Raises:
        BadConfig: a prompt that cannot be read.

    Example:
        >>> remarks(["a dog (small)"], negative="blurry", guidance=1.0)
        ["the negative prompt 'blurry' has no effect: guidance 1 is the prompt alone, and more leads away from it"]
        >>> remarks(["a dog [on grass:9]"], negative=None, guidance=5.0, steps=8)
        ["'a dog [on grass:9]' changes at step 9 of 8, which never comes"]
    """
    said = [
        remark for prompt in dict.fromkeys([*prompts, negative or ""]) for remark in _unheeded(prompt, family, steps)
    ]
    if negative and guidance == 1:
        what = f"the negative prompt {shown(repr(negative))}"
        said.append(f"{what} has no effect: guidance 1 is the prompt alone, and more leads away from it")
    return said


def _unheeded(prompt: str, family: Family | None, steps: int | None) -> Iterator[str]:
    what, emphasis = shown(repr(prompt)), family is None or family.emphasis
    script = script_of(prompt, emphasis=emphasis)
    found = None if emphasis else _EMPHASIS.search(prompt)
    if found:
        yield f"{shown(found[0])} in {what} is drawn as words: this family does not weigh words"
    if script.breaks and family is not None and not family.chunks:
        yield f"BREAK in {what} is left out: this family reads a prompt in one piece"
    if _AND.search(prompt):
        yield f"AND in {what} is drawn as a word: prompts are not composed by it"
    if steps is not None and script.last > steps:
        yield f"{what} changes at step {script.last:.0f} of {steps}, which never comes"
