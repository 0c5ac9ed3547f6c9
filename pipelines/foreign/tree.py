"""JSON that another program wrote, read within limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.errors import BadFile
from studio.given import parse_json
from studio.limits import within

__all__ = ["json_object"]


def json_object(text: str, key: str) -> Mapping[str, Any]:
    """Returns the table that a picture's text holds.

    Args:
        text: JSON. key: where it stands in the picture, for messages.

    Raises:
        BadFile: it is too long, or no JSON of one table.
    """
    within("metadata-bytes", len(text), f"the {key!r} text of the picture has")
    try:
        content = parse_json(text)
    except (ValueError, TypeError, BadFile) as problem:
        raise BadFile(
            f"the {key!r} text of the picture is damaged ({str(problem)[:200]}); nothing can be read from it"
        ) from None
    if not isinstance(content, Mapping):
        raise BadFile(f"the {key!r} text of the picture is damaged (no table of fields); nothing can be read from it")
    return content
