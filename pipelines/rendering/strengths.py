"""How strongly an adapter acts, as a list of jobs says it: kept as it stands, and made a strength where its file is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from studio.adapters import Strength
from studio.adapters.contract.schedule import Schedule
from studio.errors import BadConfig

__all__ = ["as_written", "made"]

OWN: Final = frozenset(["value", "components", "blocks", "schedule", "mask"])
"""What a table says that is a strength; another table is diffusers' one of blocks."""


def as_written(value: Any, number: Callable[[Any], float]) -> Any:
    """Returns a strength as it was written: a number, the text behind a name in a tag, a table, or a strength.

    Args:
        value: what was written. number: reads a number, or refuses.

    Raises:
        ValueError: it is a table that cannot be one of blocks.

    Example:
        >>> as_written("0.5", float), as_written("0@0,1@0.4", float)
        (0.5, '0@0,1@0.4')
    """
    if isinstance(value, Strength):
        return value
    if isinstance(value, Mapping):
        if not set(value) <= OWN:
            json.dumps(value, allow_nan=False)  # plain all the way down
        return dict(value)
    if isinstance(value, str) and any(mark in value for mark in "=@"):
        return value.strip()
    return number(value)


def made(strength: Any, place: Callable[[str], str]) -> Any:
    """Returns a strength with its mask opened, if it was written as a table; any other as it is.

    Args:
        strength: of :func:`as_written`. place: finds the file of a mask.

    Raises:
        BadConfig: a table that is no strength. BadFile: a mask that cannot be read.

    Example:
        >>> made({"value": 0.5, "components": {"unet": 0.8}}, str)
        Strength(0.5, unet=0.8)
    """
    if not isinstance(strength, Mapping) or not set(strength) <= OWN:
        return strength
    schedule, mask = strength.get("schedule"), strength.get("mask")
    components = strength.get("components") or {}
    if not isinstance(components, Mapping) or {*components} & {"value", "blocks", "samples", "schedule", "mask"}:
        raise BadConfig(f"the components of a strength are a table, name to number, not {components!r}")
    if isinstance(schedule, Mapping):
        schedule = Schedule(schedule.get("points", ()), over=schedule.get("over", "progress"))
    return Strength(
        strength.get("value", 1.0), blocks=strength.get("blocks"), schedule=schedule,
        mask=place(mask) if isinstance(mask, str) else mask, **components,
    )  # fmt: skip
