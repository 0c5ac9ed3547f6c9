"""Patterns: how people name layers, by a path, a suffix, a glob or a regular expression."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final

from studio.errors import BadConfig

__all__ = ["exactly", "is_expression", "matches"]

_GLOB: Final = re.compile(r"[*?\[]")


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The expression of a glob or ``re:`` pattern; None for a plain name."""
    if is_expression(pattern):
        try:
            return re.compile(pattern[3:])
        except re.error as error:
            raise BadConfig(f"the target {pattern!r} is not a regular expression: {error}") from None
    if not _GLOB.search(pattern):
        return None
    escaped = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))
    return re.compile(rf"(?:.*\.)?{escaped}")


def matches(pattern: str, path: str) -> bool:
    """Says whether ``pattern`` names ``path``: exactly, as a suffix, as a glob, or as ``re:`` and an expression.

    Example:
        >>> [matches(p, "mid.0.to_q") for p in ("mid.0.to_q", "to_q", "o_q", "mid.*.to_?", "re:.*to_[qk]")]
        [True, True, False, True, True]
    """
    expression = _compiled(pattern)
    if expression is not None:
        return expression.fullmatch(path) is not None
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
