"""Whether the text that makes a picture again holds what it must: each field of its type, and within its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from studio.families.attention import ATTENTIONS
from studio.limits import limit

__all__ = ["damage"]


def damage(content: Mapping[str, Any]) -> str | None:
    """Says what is wrong with the content of a ``studio`` text, or None.

    Args:
        content: the parsed text.
    """
    for fields, table in ((content, PICTURE), (content.get("base"), BASE), *_adapters(content)):
        if not isinstance(fields, Mapping):
            return "a part of it is no table of fields"
        for name, right in table.items():
            if not right(fields.get(name)):
                return f"{name}={str(fields.get(name))[:40]!r}"
    names = [use["name"] for use in content["adapters"]]
    return None if len(set(names)) == len(names) else "an adapter is named twice"


def _adapters(content: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Callable[[Any], bool]]]]:
    uses = content.get("adapters")
    return [(use, ADAPTER) for use in uses] if isinstance(uses, list) else [(None, ADAPTER)]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) and abs(value) < 10**18 or isinstance(value, float) and math.isfinite(value)


def _count(name: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= limit(name)


def _strength(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _number(value)
    parts = [value.get("components", {}), value.get("blocks", {})]
    known = set(value) <= {"value", "components", "blocks", "schedule", "mask"} and _number(value.get("value"))
    tables = all(isinstance(part, Mapping) and all(map(_number, part.values())) for part in parts)
    return known and tables and _schedule(value.get("schedule")) and _text_or_none(value.get("mask"))


def _schedule(value: Any) -> bool:
    if value is None:
        return True
    points = value.get("points") if isinstance(value, Mapping) else None
    if not isinstance(points, list) or value.get("over") not in ("progress", "noise"):
        return False
    pairs = all(isinstance(point, list) and len(point) == 2 and all(map(_number, point)) for point in points)
    places = [point[0] if value["over"] == "progress" else 1 - point[0] for point in points] if pairs else []
    return bool(places) and places == sorted(places) and places[0] >= 0 and places[-1] <= 1


def _scheduler(value: Any) -> bool:
    settings = value.get("settings") if isinstance(value, Mapping) else None
    if not isinstance(settings, Mapping) or not _text(value.get("class")):
        return False
    # a number of training steps becomes as many noise levels
    return all(not isinstance(number, (int, float)) or abs(number) <= limit("steps") for number in settings.values())


def _start(value: Any) -> bool:
    if not isinstance(value, Mapping) or not _text(value.get("image")) or not _text_or_none(value.get("mask")):
        return False
    return _number(value.get("strength")) and 0 < value["strength"] <= 1


def _upscale(value: Any) -> bool:
    if not isinstance(value, Mapping) or not _number(value.get("factor")) or not _number(value.get("strength")):
        return False
    whole = value.get("steps") is None or _count("steps")(value["steps"])
    return whole and 1 < value["factor"] <= 16 and 0 < value["strength"] <= 1


def _embeddings(value: Any) -> bool:
    named = isinstance(value, list) and all(isinstance(use, Mapping) and _text(use.get("name")) for use in value)
    return named and all(_text(use.get("state")) and _text_or_none(use.get("sha256")) for use in value)


PICTURE: Final[dict[str, Callable[[Any], bool]]] = {
    "prompt": _text, "negative": _text_or_none, "resolved": _text_or_none, "resolved_negative": _text_or_none,
    "guidance": _number, "width": _count("side"), "height": _count("side"),
    "embedded_guidance": lambda value: value is None or _number(value),
    "start": lambda value: value is None or _start(value),
    "upscale": lambda value: value is None or _upscale(value),
    "attention": lambda value: value is None or (isinstance(value, str) and value in ATTENTIONS),
    "vae_tiling": lambda value: value is None or isinstance(value, bool),
    "vae_slicing": lambda value: value is None or isinstance(value, bool),
    "seed": lambda value: type(value) is int and 0 <= value < 2**63, "steps": _count("steps"), "rows": _count("rows"),
    "scheduler": _scheduler, "adapters": lambda value: isinstance(value, list),
    "embeddings": lambda value: value is None or _embeddings(value),
}  # fmt: skip
BASE: Final[dict[str, Callable[[Any], bool]]] = {
    "id": _text, "hash": _text_or_none, "dtype": _text, "quantize": _text_or_none,
}  # fmt: skip
ADAPTER: Final[dict[str, Callable[[Any], bool]]] = {
    "name": _text, "strength": _strength, "file": _text_or_none, "sha256": _text_or_none, "state": _text_or_none,
    "baked": lambda value: value is None or isinstance(value, bool),
}  # fmt: skip
