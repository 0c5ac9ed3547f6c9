"""What the prompts of one picture say, from its first step to its last."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from studio.families import Base
from studio.families.words import Words
from studio.pipelines.prompting.brackets import script_of
from studio.pipelines.prompting.script import Script
from studio.pipelines.request import Request
from studio.pipelines.start import first_step

__all__ = ["Spoken", "spoken"]


@dataclass(frozen=True)
class Spoken:
    """What is said in one picture.

    Args:
        prompt: the prompt. negative: what guidance leads away from; None: nothing does.
        steps: how many there are.
        length: tokens that every row has, where prompts are read in chunks; 0 elsewhere.
        lengths: what must be equal in pictures that are computed together.
    """

    prompt: Script
    negative: Script | None
    steps: int
    length: int
    lengths: tuple[tuple[int, int], ...]

    def at(self, step: int, *, negative: bool) -> Words:
        """Returns what is said in one step.

        Args:
            step: its number, from 0 on. negative: what guidance leads away from then, not the prompt.
        """
        script = self.negative if negative else self.prompt
        assert script is not None, "there is guidance"
        return replace(script.at(step, self.steps), length=self.length)

    def changes(self) -> list[int]:
        """Returns the steps in which something else is said than before, 0 among them."""
        scripts = [self.prompt] if self.negative is None else [self.prompt, self.negative]
        return sorted({step for script in scripts for step, _ in script.all(self.steps)})


def spoken(base: Base, request: Request) -> Spoken:
    """Reads the prompts of a request.

    Args:
        base: which draws it. request: the picture.

    Raises:
        BadConfig: brackets that cannot be read. DoesNotFit: a prompt that the base cannot read whole.
    """
    family = base.family
    steps = max(request.steps - first_step(base, request.given, request.steps), 1)
    prompt = script_of(request.prompt, emphasis=family.emphasis)
    negative = script_of(request.negative, emphasis=family.emphasis) if request.guidance != 1 else None
    said = [
        (one, words, away) for one, away in ((prompt, False), (negative, True)) if one for words in _all(one, steps)
    ]
    family.check_text(base.pipe, [words for _, words, _ in said])
    row = functools.cache(lambda words, away: family.row_length(base.pipe, words, away))
    if family.chunks:
        length = max(row(words, away) for _, words, away in said)
        return Spoken(prompt, negative, steps, length, ((0, length),))
    lengths = _lengths((step, row(words, False)) for step, words in prompt.all(steps))
    if negative is not None:
        lengths += _lengths((step, row(words, True)) for step, words in negative.all(steps))
    return Spoken(prompt, negative, steps, 0, tuple(lengths))


def _all(script: Script, steps: int) -> Sequence[Words]:
    return list(dict.fromkeys(words for _, words in script.all(steps)))


def _lengths(lengths: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """From which step on rows have which length, wherever that changes."""
    return list(_changed(lengths))


def _changed(lengths: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    last = None
    for step, length in lengths:
        if length != last:
            yield step, length
        last = length
