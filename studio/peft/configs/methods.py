"""PEFT's config of each method that the studio has: made of what the method's own file says about it.

The classes, and the enumerations and small configs in them, are attributes of this module by their PEFT names.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

from studio.adapters import METHODS, AdapterConfig
from studio.adapters.contract.foreign import Choice, Part
from studio.peft.configs.checks import check_lora
from studio.peft.configs.config import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PeftConfig,
    PromptLearningConfig,
)
from studio.peft.terms.errors import refusals
from studio.peft.terms.types import PeftType

__all__ = ["names"]

_CHOOSE: Final = ("exclude_modules", "layers_to_transform", "layers_pattern")
_LAYERS: Final = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
"""Fields that name layers, of which a config may not have those that choose among them."""


def names() -> list[str]:
    """Returns the names of all configs, enumerations and small configs, sorted."""
    _make_all()
    return sorted(name for name, one in globals().items() if isinstance(one, type) and one.__module__ == __name__)


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        _make_all()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _make_all() -> None:
    """Makes what has not been made of the methods that are registered."""
    by_name: dict[str, list[type[AdapterConfig]]] = {}
    for config in METHODS.values():
        if config.adapter.peft.type:
            by_name.setdefault(config.adapter.peft.settings.name, []).append(config)
    for name in by_name:
        _made(name, by_name)


def _made(name: str, by_name: dict[str, list[type[AdapterConfig]]]) -> Any:
    """The config class of that name, which several methods may have."""
    if name in globals():
        return globals()[name]
    plain = min(by_name[name], key=lambda config: sum(map(bool, config.adapter.peft.settings.flags.values())))
    peft, settings = plain.adapter.peft, plain.adapter.peft.settings
    base, layers = PeftConfig, tuple(name for name in _LAYERS if name not in _CHOOSE or name in settings.chooses)
    if "model" in plain.adapter.kinds:
        base, layers = PromptLearningConfig, ()
    if settings.extends:
        base = _made(settings.extends, by_name)
    fields = {**dict.fromkeys(layers), **settings.defaults}
    own: dict[str, Any] = {"word": peft.type, "settings": settings, "__doc__": _doc(by_name[name])}
    if settings.parts and not settings.extends:
        own["__post_init__"] = _checked(base, {field: _part(part) for field, part in settings.parts.items()})
    made: Any = dataclasses.make_dataclass(
        name,
        [(field, _annotation(value), _default(value)) for field, value in fields.items()],
        bases=(base,),
        namespace=own,
        kw_only=True,
    )
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft.type)] = made
    return _keep(made)


def _checked(base: type[PeftConfig], parts: dict[str, Any]) -> Any:
    """What a config with starts of its own does once it is made."""

    def __post_init__(self: Any) -> None:
        base.__post_init__(self)
        check_lora(self, parts)

    return __post_init__


def _doc(configs: Iterable[type[AdapterConfig]]) -> str:
    return f"PEFT's config of {', '.join(config.__name__ for config in configs)}."


def _annotation(value: Any) -> Any:
    return type(value) if isinstance(value, (bool, int, float, str)) else Any


def _default(value: Any) -> Any:
    """A dataclass's field with that default."""
    if isinstance(value, Part):
        return dataclasses.field(default_factory=_part(value))
    if isinstance(value, Choice):
        return dataclasses.field(default=_choice(value)(value.usual))
    if isinstance(value, (dict, list)):
        return dataclasses.field(default_factory=functools.partial(copy.copy, value))
    return dataclasses.field(default=value)


def _part(part: Part) -> Any:
    if part.name in globals():
        return globals()[part.name]
    fields = [(name, _annotation(value), _default(value)) for name, value in part.defaults.items()]

    def __post_init__(self: Any) -> None:
        with refusals():
            part.check(self)

    own = {"__doc__": "A part of a config of PEFT's.", "__post_init__": __post_init__}
    return _keep(dataclasses.make_dataclass(part.name, fields, namespace=own))


def _choice(choice: Choice) -> Any:
    if choice.name in globals():
        return globals()[choice.name]
    return _keep(Enum(choice.name, {word: word for word in choice.words}, type=str))  # type: ignore[misc]


def _keep(made: Any) -> Any:
    """Makes a class an attribute of this module, by which pickles find it again."""
    made.__module__ = __name__
    globals()[made.__name__] = made
    return made


_make_all()
