r"""Brackets in a prompt: words that count more or less, and words that change while it denoises; A1111's language.

- ``(x)`` counts 1.1 times as much, ``[x]`` 1/1.1 times, ``(x:1.3)`` 1.3 times; inside one another they multiply;
- ``[a:b:0.5]`` is a in the first half of the steps, then b; ``[b:0.5]`` is b from there on, ``[a::0.5]`` a until there;
  a whole number, ``[a:b:8]``, counts steps: with ``w`` the number, a holds in step i = 0, 1, … of n while
  ``i < int(w n)``, or ``i < w`` if w is whole;
- ``[a|b|c]`` are a, b and c in turn, step by step: the option ``i mod 3``;
- ``BREAK`` begins a new chunk, where prompts are read in chunks;
- ``\(``, ``\)``, ``\[``, ``\]``, ``\:``, ``\|``, ``\\`` and ``\BREAK`` are the characters.

A bracket that nothing closes is refused: where A1111 takes it for one that reaches to the end, nobody can see it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from studio.errors import BadConfig
from studio.limits import limit, too_many
from studio.pipelines.prompting.script import Break, Node, Script, Switch, Text, Turns, Weighed
from studio.pipelines.prompting.where import quoted, where

__all__ = ["ESCAPED", "MORE", "script_of"]

MORE: Final = 1.1
ESCAPED: Final = r"\\(?:BREAK\b|[\\()\[\]{}<>|:_$])"

_TOKEN = re.compile(rf"{ESCAPED}|\bBREAK\b|[()\[\]:|]|(?:(?!\bBREAK\b)[^\\()\[\]:|])+|\\", re.DOTALL)
_WEIGHT = re.compile(r"\s*[+-]?[.\d]+\s*")
_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")
_WHEN = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*")
_CLOSES: Final = {")": "(", "]": "["}


@dataclass(frozen=True)
class _Mark:
    """A colon or a bar, which may separate."""

    sign: str


Item: TypeAlias = "Node | _Mark"


@dataclass
class _Open:
    """A bracket that is open.

    Args:
        sign: the bracket. place: where it stands. items: what stands behind it.
    """

    sign: str
    place: int
    items: list[Item] = field(default_factory=list)


@functools.lru_cache(maxsize=512)
def script_of(prompt: str, *, emphasis: bool = True) -> Script:
    r"""Takes a prompt apart, after its tags are taken out.

    Args:
        prompt: the prompt.
        emphasis: whether words may count more or less; where they may not, brackets without steps are text.

    Raises:
        BadConfig: a bracket that nothing opens or closes, or brackets whose inside cannot be read.

    Example:
        >>> script_of(r"a (red:1.3) dog \(small\)").at(0, 1).parts
        ((('a ', 1.0), ('red', 1.3), (' dog (small)', 1.0)),)
        >>> [str(script_of("a [dog:cat:0.5]").at(step, 4)) for step in range(4)]
        ['a dog', 'a dog', 'a cat', 'a cat']
        >>> script_of("a (dog")
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: the prompt 'a (dog': nothing closes the '(' at character 3, before 'dog'...
    """
    open_ones = [_Open("", 0)]
    for token in _TOKEN.finditer(prompt):
        sign = token[0]
        if sign == "[" or (sign == "(" and emphasis):
            if len(open_ones) > limit("prompt-depth"):
                raise BadConfig(f"the prompt {quoted(prompt)}: {too_many('prompt-depth')}")
            open_ones.append(_Open(sign, token.start()))
        elif sign == "]" or (sign == ")" and emphasis):
            _close(open_ones, sign, prompt, token.start(), emphasis)
        else:
            open_ones[-1].items.append(_item(sign))
    while len(open_ones) > 1:
        left = open_ones.pop()
        if emphasis:
            raise BadConfig(
                f"the prompt {quoted(prompt)}: nothing closes the {left.sign!r} {where(prompt, left.place)}; close it, "
                f"or write \\{left.sign} for the character"
            )
        open_ones[-1].items += [Text(left.sign), *left.items]
    return Script(_plain(open_ones[0].items))


def _item(sign: str) -> Item:
    if sign in (":", "|"):
        return _Mark(sign)
    if sign == "BREAK":
        return Break()
    return Text(sign[1:] if sign[0] == "\\" and len(sign) > 1 else sign)


def _close(open_ones: list[_Open], sign: str, prompt: str, place: int, emphasis: bool) -> None:
    """Closes the innermost bracket; its inside becomes one node of what is around it."""
    if open_ones[-1].sign != _CLOSES[sign]:
        if not emphasis and len(open_ones) == 1:
            open_ones[-1].items.append(Text(sign))
            return
        hint = f", for the '(' {where(prompt, open_ones[-1].place)} is open" if open_ones[-1].sign else ""
        raise BadConfig(
            f"the prompt {quoted(prompt)}: the {sign!r} {where(prompt, place)} closes nothing{hint}; "
            f"write \\{sign} for the character"
        )
    done = open_ones.pop()
    at = f"the prompt {quoted(prompt)}: {quoted(prompt[done.place : place + 1])} {where(prompt, done.place)}"
    inside = _round(done.items, at) if sign == ")" else _square(done.items, at, emphasis)
    open_ones[-1].items += inside


def _round(items: Sequence[Item], at: str) -> list[Item]:
    """``(x)`` or ``(x:1.3)``.

    Raises:
        BadConfig: a weight that is no number.
    """
    number = _last(items)
    if number is not None and _COMMA.fullmatch(number):
        raise BadConfig(f"{at} has the weight {number.strip()!r}; write it with a point, or \\: for the character")
    if number is None or not _WEIGHT.fullmatch(number):
        return [Weighed(_plain(items), MORE)]
    try:
        return [Weighed(_plain(items[:-2]), float(number))]
    except ValueError:
        raise BadConfig(f"{at} has the weight {number.strip()!r}, which is no number; (x:1.2) is how it goes") from None


def _square(items: Sequence[Item], at: str, emphasis: bool) -> list[Item]:
    """``[x]``, ``[a:b:0.5]`` or ``[a|b]``.

    Raises:
        BadConfig: none of them.
    """
    number = _last(items)
    when = number if number is not None and _WHEN.fullmatch(number) else None
    if _Mark("|") in items:
        if when is not None:
            raise BadConfig(f"{at} takes turns and has a number; put one into the other: [[a|b]::0.5]")
        return [Turns(tuple(map(_plain, _split(items, "|"))))]
    parts = _split(items, ":")
    if when is None:
        if emphasis and len(parts) > 1:
            raise BadConfig(f"{at} has no step at its end, as [a:b:0.5] has; write \\: for the character")
        return [Weighed(_plain(items), 1 / MORE)] if emphasis else [Text("["), *_plain(items), Text("]")]
    if len(parts) > 3:
        raise BadConfig(f"{at} has {len(parts) - 1} texts, and [a:b:0.5] two; write \\: for the character")
    fraction = "." in when
    if not 0 <= float(when) <= (1 if fraction else limit("steps")):
        raise BadConfig(
            f"{at} has the step {when.strip()}: give a part of the steps from 0.0 to 1.0, or a whole number of steps "
            "(a weight is in round brackets: (x:1.2))"
        )
    before = _plain(parts[0]) if len(parts) == 3 else ()
    return [Switch(before, _plain(parts[-2]), float(when), fraction)]


def _last(items: Sequence[Item]) -> str | None:
    """The text behind a colon at the end."""
    if len(items) < 2 or items[-2] != _Mark(":") or not isinstance(items[-1], Text):
        return None
    return items[-1].text


def _split(items: Sequence[Item], sign: str) -> list[list[Item]]:
    parts: list[list[Item]] = [[]]
    for item in items:
        if item == _Mark(sign):
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


def _plain(items: Sequence[Item]) -> tuple[Node, ...]:
    """The nodes; marks that separate nothing are text."""
    return tuple(Text(item.sign) if isinstance(item, _Mark) else item for item in items)
