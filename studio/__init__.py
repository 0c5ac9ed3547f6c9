"""A studio for adapters on image and language models: attach, train, blend, bake, save and load them.

Importing this package imports nothing heavy: each public name is fetched from its module when it is first touched.

Example:
    >>> import studio
    >>> studio.__version__
    '0.1.0'
    >>> studio.LoRA(rank=4).rank
    4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio import adapters as adapters  # a module that one can call: adapters(model)
    from studio.adapters import (
        IA3,
        METHODS,
        DoRA,
        LoKr,
        LoRA,
        Strength,
        attach,
        bake,
        blend,
        blended,
        detach,
        sample_rows,
        state,
        trainable,
        unbake,
    )
    from studio.errors import StudioError
    from studio.files import inspect, load, save

__version__ = "0.1.0"

_HOMES = {
    "studio.adapters": (
        "attach", "detach", "blend", "blended", "trainable", "state", "bake", "unbake", "sample_rows",
        "Strength", "METHODS", "LoRA", "DoRA", "IA3", "LoKr",
    ),
    "studio.files": ("save", "load", "inspect"),
    "studio.errors": ("StudioError",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}
# `studio.adapters` is the package and, called, the list of a model's adapters: it needs no entry in _HOME
_MODULES = ("adapters", "families", "files", "trainers", "pipelines", "datasets", "errors")

__all__ = [
    "METHODS",
    "DoRA",
    "IA3",
    "LoKr",
    "LoRA",
    "StudioError",
    "Strength",
    "adapters",
    "attach",
    "bake",
    "blend",
    "blended",
    "detach",
    "inspect",
    "load",
    "sample_rows",
    "save",
    "state",
    "trainable",
    "unbake",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"studio.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next touch is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
