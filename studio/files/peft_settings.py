"""What a PEFT config says about rank and scale, with PEFT's own rules for its patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from studio.adapters import METHODS, Adapter
from studio.adapters.contract.foreign import Settings
from studio.adapters.contract.pattern import check_foreign, matches
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadFile, DoesNotFit
from studio.files.scale import Grade, root_or_rank

__all__ = ["PeftSettings", "expressions_in", "flagged_method", "refuse_unknown", "refuse_unknown_type"]

_BESIDE_FUNCTION: Final = frozenset(
    "auto_mapping base_model_name_or_path inference_mode modules_to_save peft_type peft_version revision task_type "
    "target_modules target_parameters exclude_modules layers_to_transform layers_pattern fan_in_fan_out "
    "rank_pattern alpha_pattern runtime_config bias".split()
)
"""Fields of every method that say where an adapter sits, or what its tensors show by themselves."""

_PLAIN: Final = re.compile(r"\^?(?:\w|\\?[.-])+")
"""A pattern that is a name, its dots escaped or not; a dot in it is taken for a dot."""

_OFF: Final[tuple[Any, ...]] = (None, False, [], {}, "")


def refuse_unknown(fields: Mapping[str, Any], method: str, where: str, beside: Collection[str] = ()) -> None:
    """Refuses a field that may change what the tensors mean.

    Args:
        fields: PEFT's config. method: our method. where: what the config is called in the message.
        beside: further fields that change nothing.

    Raises:
        DoesNotFit: a field is set with which PEFT computes something else than the tensors say by themselves, or one
            that is neither of the method nor one of those that change nothing.
    """
    adapter = METHODS[method].adapter
    peft, settings = adapter.peft, adapter.peft.settings
    taken = {*_BESIDE_FUNCTION, *_read_fields(adapter), *settings.beside, *beside}
    for name, value in fields.items():
        if _changes_function(settings, name, value, taken):
            raise DoesNotFit(
                f"{where} says {name}={value!r}, with which PEFT computes something that its tensors alone do not say; "
                "convert the adapter in PEFT to a plain one first"
            )
    for name, wanted in {"peft_type": peft.type, **settings.flags}.items():
        if name in fields and fields[name] != wanted:
            raise DoesNotFit(f"{where} says {name}={fields[name]!r}, and the tensors beside it are those of {method}")
    for name, value in fields.items():
        if name not in taken and name not in settings.defaults and value not in _OFF:
            raise DoesNotFit(
                f"{where} says {name}={value!r}, which is not known here and may change what the tensors mean; if it "
                "does not, take it out there"
            )


def _read_fields(adapter: type[Adapter]) -> list[str]:
    """The fields of PEFT's config that are read."""
    settings, either = adapter.peft.settings, adapter.either
    read = [*settings.fields.values(), *settings.flags, *settings.reads, settings.init]
    return read if either is None else [*read, either.setting]


def _changes_function(settings: Settings, name: str, value: Any, taken: Collection[str]) -> bool:
    """Whether a field of PEFT's says that it computes something else than the tensors do."""
    if name == "bias":  # a trained bias of the base stands in no tensor of the method
        return value not in ("none", None)
    if name == settings.init and settings.starts is not None:
        return value not in (True, False, None, *settings.starts)
    return name in settings.defaults and name not in taken and value not in _OFF


def refuse_unknown_type(fields: Mapping[str, Any], where: str) -> None:
    """Refuses a config of a method that the studio does not have.

    Raises:
        DoesNotFit: its ``peft_type`` is of no registered method.
    """
    known = sorted({config.adapter.peft.type for config in METHODS.values()} - {""})
    stated = fields.get("peft_type")
    if stated is not None and stated not in known:
        raise DoesNotFit(
            f"{where} says peft_type={stated!r}, a method that is not among those that can be read: {', '.join(known)}"
        )


def flagged_method(fields: Mapping[str, Any] | None) -> str:
    """Returns the method that a PEFT config names by a flag (``use_qalora``), "" where it names none."""
    for method, config in METHODS.items():
        peft = config.adapter.peft
        flags = [name for name, value in peft.settings.flags.items() if value]
        if fields and flags and fields.get("peft_type") == peft.type and all(map(fields.get, flags)):
            return method
    return ""


class PeftSettings:
    """The fields of a PEFT config as far as they matter to the function.

    Args:
        fields: the config. method: our method. where: what it is called in messages.
        component: the component that it is for, as the file calls it.

    Raises:
        BadFile: a field has an impossible value. DoesNotFit: the config asks for something that the studio does not do.
    """

    def __init__(self, fields: Mapping[str, Any], method: str, where: str, component: str = "") -> None:
        self.notes: list[str] = []
        self.component = component
        self._adapter = METHODS[method].adapter
        self._fields = self.stated = fields
        refuse_unknown(fields, method, where)
        settings = self._adapter.peft.settings
        names = settings.fields
        self._where = where
        self._ranked = issubclass(METHODS[method], RankedConfig)
        try:
            fields = settings.restate(fields)
            self._rank_field = names.get("rank", "")
            self._rank = int(_number(fields, self._rank_field, 8, whole=True))
            self._alpha = _number(fields, names.get("alpha", ""), 8)
            self._stabilized = _flag(fields, names.get("rank_stabilized", ""))
            self._alphas = _Patterns(_table(fields, "alpha_pattern"), where)
            self._ranks = _Patterns(_table(fields, "rank_pattern", whole=True), where)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise BadFile(f"{where} cannot be read as a PEFT config: {error}") from None

    def grade(self, module: str, rank: int | None) -> Grade:
        """Returns the rank and the scale that the config states for ``module``, whose tensors have rank ``rank``.

        Raises:
            BadFile: the tensors have another rank than the config says, and so the scale could be either's.
        """
        if not self._ranked:
            return Grade(None, None)
        stated = self._ranks.first(module, self._rank)
        rank = int(stated) if rank is None else rank
        if rank != stated and self._rank_field in self._fields:
            raise BadFile(
                f"{self._where} says rank {stated:g} for {module}, and its tensors have rank {rank}; one of them is of "
                f"another adapter: correct {self._rank_field} or rank_pattern there"
            )
        return Grade(rank, self._alphas.first(module, self._alpha) / root_or_rank(rank, self._stabilized))

    def fields(self) -> dict[str, Any]:
        """Returns the fields for the method's own config, and notes the patterns that match no layer of the file."""
        for table, patterns in (("alpha_pattern", self._alphas), ("rank_pattern", self._ranks)):
            self.notes += [f"{table} {pattern!r} matches no layer of the file" for pattern in patterns.unused()]
        return {
            ours: self._fields[theirs]
            for ours, theirs in self._adapter.peft.settings.fields.items()
            if self._fields.get(theirs) is not None and (ours not in ("rank", "alpha") or not self._ranked)
        }

    def second(self, module: str) -> bool | None:
        """Says whether a layer has the second of two tensors of one name; None where the config does not say.

        Raises:
            BadFile: what the config says is no list of names and no expression that may be run.
        """
        either = self._adapter.either
        stated = None if either is None else self._fields.get(either.setting)
        if either is None or stated is None:
            return None
        if isinstance(stated, str):
            check_foreign([f"re:{stated}"], f"{self._where} says {either.setting}")
            return matches(f"re:{stated}", module)
        if not isinstance(stated, (list, tuple, set)) or not all(isinstance(name, str) for name in stated):
            raise BadFile(f"{self._where} says {either.setting}={str(stated)[:60]!r}, which is no list of names")
        return any(module.endswith(name) for name in stated)  # PEFT compares without a dot


def _number(fields: Mapping[str, Any], name: str, default: float, *, whole: bool = False) -> float:
    """A field that is a number; PEFT computes with nothing else.

    Raises:
        ValueError: it is none, or not a whole one.
    """
    return _as_number(name, fields.get(name, default), whole)


def _as_number(name: str, value: Any, whole: bool) -> float:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 63
    if not sound or (whole and value != int(value)):
        raise ValueError(f"{name}={str(value)[:60]!r} is no {'whole ' if whole else ''}number")
    return float(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value not in (None, True, False):
        raise ValueError(f"{name}={str(value)[:60]!r} is neither true nor false")
    return bool(value)


def _table(fields: Mapping[str, Any], name: str, *, whole: bool = False) -> dict[str, float]:
    """A field that is a table of numbers by pattern.

    Raises:
        ValueError: it is none.
    """
    table = fields.get(name) or {}
    if not isinstance(table, Mapping):
        raise ValueError(f"{name}={str(table)[:60]!r} is no table")
    return {pattern: _as_number(f"{name}[{pattern[:60]!r}]", value, whole) for pattern, value in table.items()}


def expressions_in(fields: Mapping[str, Any]) -> list[str]:
    """Returns the regular expressions in a PEFT config, as patterns of ours."""
    single = ("target_modules", "exclude_modules", "feedforward_modules")
    found = [value for name in single if isinstance(value := fields.get(name), str)]
    words = fields.get("layers_pattern") or ()
    found += [words] if isinstance(words, str) else [word for word in words if isinstance(word, str)]
    for name in ("rank_pattern", "alpha_pattern"):
        table = fields.get(name)
        found += [key for key in table if not _PLAIN.fullmatch(key)] if isinstance(table, dict) else []
    return [f"re:{expression}" for expression in found]


class _Patterns:
    """A table of PEFT's patterns; the first that matches counts."""

    def __init__(self, table: Mapping[str, float], where: str) -> None:
        self._values = dict(table)
        self._plain: dict[str, str] = {}
        self._regular: list[tuple[str, str]] = []
        for pattern in table:
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern.replace("\\", ""), pattern)
            else:
                self._regular.append((pattern, rf"re:(?:.*\.)?(?:{pattern})"))
        for forms in ([f"re:{pattern}" for pattern, _ in self._regular], [whole for _, whole in self._regular]):
            check_foreign(forms, f"{where} says")  # the first names what is wrong as it stands there
        self._place = {pattern: place for place, pattern in enumerate(table)}
        self._used: set[str] = set()

    def first(self, module: str, default: float) -> float:
        if not self._values:
            return default
        hits = [pattern for pattern, expression in self._regular if matches(expression, module)]
        # plain names, of which there can be one per layer, are looked up; a dot in them is taken for a dot
        ending = module
        while ending:
            hits += [self._plain[ending]] if ending in self._plain else []
            ending = ending.partition(".")[2]
        hits += [self._plain[f"^{module}"]] if f"^{module}" in self._plain else []
        if not hits:
            return default
        chosen = min(hits, key=self._place.__getitem__)
        self._used.add(chosen)
        return self._values[chosen]

    def unused(self) -> list[str]:
        return [pattern for pattern in self._values if pattern not in self._used]
