"""Which settings make a run the same run: all that decides its bytes, and for some questions all but its length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from studio.adapters import METHODS
from studio.config import plain
from studio.trainers.loop.plan import FREE, Plan

__all__ = ["compared", "steps_of", "without_length"]

COMPARED: Final = ("adapter", "training", "task", "inputs")
LENGTH: Final = ("steps", "warmup")  # of the training; a run that trains on has other ones


def compared(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a resumed run must share.

    A field that a config has got since the run was begun is taken as its default, which is what the run did.

    Args:
        content: what ``run.toml`` says.
    """
    parts = {part: content.get(part, {}) for part in COMPARED}
    adapter, training = parts["adapter"], parts["training"]
    if isinstance(adapter, Mapping) and adapter.get("method") in list(METHODS):
        parts["adapter"] = {**_defaults(METHODS[adapter["method"]]), **adapter}
    if isinstance(training, Mapping):
        usual = {name: value for name, value in _defaults(Plan).items() if name not in FREE}
        parts["training"] = {**usual, **training}
    return parts


def without_length(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of :func:`compared` without how long the run is."""
    training = content["training"]
    if not isinstance(training, Mapping):  # of a file that was edited
        return dict(content)
    return {**content, "training": {name: value for name, value in training.items() if name not in LENGTH}}


def steps_of(content: Mapping[str, Any]) -> int:
    """Returns how many steps a run has; 0 where that cannot be read."""
    training = content["training"]
    steps = training.get("steps") if isinstance(training, Mapping) else None
    return steps if isinstance(steps, int) else 0


def _defaults(config: type[Any]) -> dict[str, Any]:
    """The defaults of a config's fields as ``run.toml`` writes them; those without one are left out."""
    known = [field for field in dataclasses.fields(config) if field.init]
    missing = dataclasses.MISSING
    if any(field.default is missing and field.default_factory is missing for field in known):
        return {}
    return plain(config())
