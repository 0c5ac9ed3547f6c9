"""Text that came from a file, a file's name or a command line, as it may be printed."""

from __future__ import annotations

import json
import re
from typing import Any, Final

__all__ = ["short", "shown"]

# control characters but none that lays out text, lone surrogates, line and paragraph separators, and the marks that
# make a terminal show text in another order than it stands
_RAW: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, *, lines: bool = False) -> str:
    r"""Returns a text without anything that a terminal would act on or that cannot be encoded.

    Control characters are written as in Python, ``\x1b``; the bytes of a file name that is not UTF-8 as ``\xff``.

    Args:
        text: the text; anything else is made one first.
        lines: keep line ends and tabs, as in a text of several lines.

    Example:
        >>> print(shown("a\x1b]0;title\x07b"), shown("caf\udce9.png"), shown("grün"))
        a\x1b]0;title\x07b caf\xe9.png grün
    """
    keep = "\n\t" if lines else ""
    return _RAW.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), str(text))


def short(value: Any, most: int = 60) -> str:
    """Returns a value that JSON holds as JSON, at most that many characters of it.

    Args:
        value: the value. most: characters.

    Example:
        >>> short({"text": "a" * 100}, 20)
        '{"text": "aaaaaaa...'
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _written(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        code -= 0xDC00
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
