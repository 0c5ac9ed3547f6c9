r"""Text that is read as it stands: what the prompt language would read is escaped."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escape_prompt"]

_READ: Final = re.compile(r"\\[<>]|<[^<>]*>|\bBREAK\b|__|[\\()\[\]{}]")


def escape_prompt(text: str) -> str:
    r"""Returns a prompt that is read as ``text`` stands, its adapter tags alone being tags.

    Args:
        text: the text.

    Example:
        >>> print(escape_prompt("a (small) dog {1} <ink:0.5>"))
        a \(small\) dog \{1\} <ink:0.5>
    """
    return _READ.sub(lambda found: found[0] if found[0][-1] in "<>" else f"\\{found[0]}", text)
