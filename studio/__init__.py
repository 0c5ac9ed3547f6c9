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
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from studio.version import __version__ as __version__

if TYPE_CHECKING:
    from studio import adapters as adapters  # a module that one can call: adapters(model)
    from studio.adapters import (
        COMBINES,
        METHODS,
        Mixed,
        Schedule,
        Strength,
        at_progress,
        attach,
        bake,
        blend,
        blended,
        blended_samples,
        block_weights,
        combine,
        detach,
        grow,
        quantize,
        sample_rows,
        slots,
        state,
        trainable,
        unbake,
    )
    from studio.adapters.interference import BlendReport, blend_report
    from studio.adapters.methods import *  # noqa: F403  (the configs: LoRA, DoRA, ...)
    from studio.adapters.normalized import normalized
    from studio.errors import StudioError
    from studio.files import (
        Embedding,
        combine_files,
        embeddings,
        read_embeddings,
        remove_embedding,
        save_embedding,
    )
    from studio.files.convert import convert  # by their modules, which have their names
    from studio.files.extract import extract
    from studio.files.inspect import inspect
    from studio.files.load import load
    from studio.files.resize import resize
    from studio.files.save import save
    from studio.trainers.forecast.plan import plan

_HOMES = {
    "studio.adapters": (
        "attach", "detach", "blend", "blended", "grow", "trainable", "state", "bake", "unbake", "sample_rows",
        "quantize", "Strength", "Schedule", "Mixed", "METHODS", "COMBINES", "at_progress", "block_weights",
        "combine",
        "blended_samples", "slots",
    ),
    "studio.adapters.interference": ("blend_report", "BlendReport"),
    "studio.adapters.normalized": ("normalized",),
    "studio.files": (
        "save", "load", "inspect", "combine_files", "convert", "resize", "extract", "Embedding", "embeddings",
        "read_embeddings", "remove_embedding", "save_embedding",
    ),
    "studio.errors": ("StudioError",),
    "studio.trainers.forecast": ("plan",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}
# `studio.adapters` is the package and, called, the list of a model's adapters: it needs no entry in _HOME
_MODULES = ("adapters", "families", "files", "trainers", "pipelines", "datasets", "errors", "peft")

__all__ = [
    "COMBINES",
    "METHODS",
    "BlendReport",
    "Embedding",
    "Mixed",
    "Schedule",
    "StudioError",
    "Strength",
    "adapters",
    "at_progress",
    "attach",
    "bake",
    "blend",
    "blend_report",
    "blended",
    "blended_samples",
    "block_weights",
    "combine",
    "combine_files",
    "convert",
    "detach",
    "embeddings",
    "extract",
    "grow",
    "inspect",
    "load",
    "normalized",
    "plan",
    "quantize",
    "read_embeddings",
    "remove_embedding",
    "resize",
    "sample_rows",
    "save",
    "save_embedding",
    "slots",
    "state",
    "trainable",
    "unbake",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"studio.{name}")
    if name.startswith("_"):
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    # any other public name is the config of a method: a new method needs no entry here
    home = importlib.import_module(_HOME.get(name, "studio.adapters.methods"))
    value = getattr(home, name, None)
    if value is None or isinstance(value, ModuleType):
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    globals()[name] = value  # the next touch is a plain look-up
    return value


def __dir__() -> list[str]:
    methods = sys.modules.get("studio.adapters.methods")
    configs = [] if methods is None else [name for name in vars(methods) if name[0].isupper()]
    return sorted({*globals(), *__all__, *_MODULES, *configs})
