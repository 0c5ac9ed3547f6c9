"""Patterns: how people name layers, by a path, a suffix, a glob or a regular expression."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from studio.adapters.contract.automaton import Automaton
from studio.adapters.contract.expression import Unsupported
from studio.errors import BadConfig, BadFile
from studio.limits import within

__all__ = ["check_foreign", "exactly", "expression", "is_expression", "matches"]

_GLOB: Final = re.compile(r"[*?\[]")
_WORDS: Final = r"(?:[\w|/-]|\\[^\w|])*"
_LIST: Final = re.compile(rf"\((?:\?:)?(?P<inside>{_WORDS})\)|(?P<bare>{_WORDS})", re.ASCII)


class _Names:
    """An expression that is a list of names, as the studio writes them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def fullmatch(self, text: str) -> bool:
        return text in self._names


Matcher: TypeAlias = "_Names | Automaton | re.Pattern[str]"


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Matcher | None:
    """The expression of a glob or ``re:`` pattern; None for a plain name."""
    if is_expression(pattern):
        return expression(pattern[3:])
    if not _GLOB.search(pattern):
        return None
    escaped = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))
    return expression(rf"(?:.*\.)?{escaped}")


def expression(text: str) -> Matcher:
    """Returns what matches whole texts as ``re`` does, in linear time wherever that can be done.

    Args:
        text: a regular expression of the user's; one that stands in a file is checked first (:func:`check_foreign`).

    Raises:
        BadConfig: it is none.

    Example:
        >>> expression("(a+)+b").fullmatch("a" * 1000)
        False
    """
    names = _listed(text)
    if names is not None:
        return _Names(names)
    try:
        return Automaton(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadConfig(f"the target {text[:200]!r} is not a regular expression: {error}") from None
    except Unsupported:
        return re.compile(text)


def _listed(text: str) -> list[str] | None:
    """The names that an expression lists, ``(?:a\\.b|c)``; None where it is any other."""
    found = _LIST.fullmatch(text)
    if found is None:
        return None
    names = found["bare"] if found["inside"] is None else found["inside"]
    return [re.sub(r"\\(.)", r"\1", name) for name in names.split("|")]


def check_foreign(patterns: Iterable[str], where: str) -> None:
    """Checks the patterns that a file brings, before any of them is used.

    Args:
        patterns: as :func:`matches` takes them. where: the subject of the sentence, ``"x.safetensors says"``.

    Raises:
        BadFile: one is no regular expression, cannot be matched in linear time, or they are longer than the limit.
    """
    total = 0
    for pattern in patterns:
        if not is_expression(pattern) and not _GLOB.search(pattern):
            continue
        if is_expression(pattern) and _listed(pattern[3:]) is not None:
            continue
        total += len(pattern)
        within("pattern-characters", total, f"{where} at least")
        try:
            found: object = _compiled(pattern)
        except BadConfig as error:
            raise BadFile(f"{where} {pattern[:100]!r}: {error}") from None
        if isinstance(found, re.Pattern):
            raise BadFile(
                f"{where} {pattern[:100]!r}, an expression that may take for ever (it looks back, refers back or is "
                "very large), which is not run out of a file; write the names of the layers there"
            )


def matches(pattern: str, path: str) -> bool:
    """Says whether ``pattern`` names ``path``: exactly, as a suffix, as a glob, or as ``re:`` and an expression.

    Raises:
        BadConfig: the expression is none, or takes too many steps.

    Example:
        >>> [matches(p, "mid.0.to_q") for p in ("mid.0.to_q", "to_q", "o_q", "mid.*.to_?", "re:.*to_[qk]")]
        [True, True, False, True, True]
    """
    found = _compiled(pattern)
    if found is not None:
        try:
            return bool(found.fullmatch(path))
        except Unsupported as error:
            raise BadConfig(f"the target {pattern[:200]!r} cannot be matched: {error}; write it more simply") from None
    return path == pattern or path.endswith("." + pattern)


def is_expression(pattern: str) -> bool:
    """Says whether a pattern is a regular expression, which names whole paths."""
    return pattern.startswith("re:")


def exactly(paths: Iterable[str]) -> str:
    """Returns a pattern that names exactly ``paths``.

    Example:
        >>> [matches(exactly(["mid.to_q", "to_k"]), path) for path in ("mid.to_q", "to_q", "to_k")]
        [True, False, True]
    """
    return f"re:(?:{'|'.join(map(re.escape, paths))})"
