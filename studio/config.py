"""Configs: frozen dataclasses that come from and go to dicts, TOML and ``key=value``, checked field by field.

A value is checked against the annotation of its field. Known annotations: ``bool``, ``int``, ``float``, ``str``,
``Path``, ``Literal``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``, a nested dataclass, and unions of these
with ``None``. Numbers of numpy and torch become Python's own. Ranges are the config's business (``__post_init__``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from studio.errors import BadConfig, BadFile, nearest
from studio.given import is_text, read_given

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "assignments",
    "build",
    "check",
    "differences",
    "finite",
    "listed",
    "own_number",
    "plain",
    "read_toml",
    "to_toml",
    "whole_from_one",
]

C = TypeVar("C")


class Text(str):
    """A value from the command line, whose type is still to be found from the field it is for."""


def build(cls: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """Makes a config of class ``cls`` from plain values.

    Args:
        cls: a dataclass.
        values: field name to plain value, as TOML or JSON give them (lists for tuples, strings for paths, dicts for
            nested configs). A dotted name (``"adapter.rank"``) reaches into a nested config.
        where: what the values belong to, for messages ("runs/dog/run.toml").

    Raises:
        BadConfig: an unknown field (the nearest one is named), a missing one, or a value of another type.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Crop:
        ...     width: int = 512
        ...     sides: tuple[str, ...] = ()
        >>> build(Crop, {"width": 640, "sides": ["left"]})
        Crop(width=640, sides=('left',))
        >>> build(Crop, {"widht": 640})
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: Crop has no field 'widht'; did you mean 'width'? (fields: width, sides)
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    expected = _annotations(cls)
    title = f"{where}: {cls.__name__}" if where else cls.__name__
    arguments = {}
    for name, value in _nested(values, title).items():
        if name not in fields:
            close = nearest(name, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadConfig(f"{title} has no field {name!r}{hint} (fields: {', '.join(fields)})")
        arguments[name] = _convert(value, expected[name], f"{title}.{name}")
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BadConfig(f"{title} needs {', '.join(missing)}, which is not given")
    return cls(**arguments)


def check(config: Any) -> None:
    """Checks that every field of ``config`` holds what its annotation says, and makes lists into tuples.

    Meant for the first line of a config's ``__post_init__``; a value that only needs another container or ``int`` to
    ``float`` is converted in place.

    Raises:
        BadConfig: naming the field, the value and what is allowed.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Blur:
        ...     radius: float = 1.0
        ...     def __post_init__(self) -> None:
        ...         check(self)
        >>> Blur(radius=2)
        Blur(radius=2.0)
        >>> Blur(radius="wide")
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: Blur.radius must be a number, not 'wide'
    """
    expected = _annotations(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        converted = _convert(value, expected[field.name], f"{type(config).__name__}.{field.name}")
        if converted is not value:
            object.__setattr__(config, field.name, converted)


def plain(config: Any) -> dict[str, Any]:
    """Returns a config as plain values that JSON and TOML can hold; :func:`build` makes the same config of them.

    A ``None`` is left out where it is the field's default, and is the word ``"none"`` elsewhere.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Noise:
        ...     offset: float = 0.0
        ...     file: Path | None = None
        >>> plain(Noise(file=Path("a/b")))
        {'offset': 0.0, 'file': 'a/b'}
    """
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and field.default is None:
            continue
        result[field.name] = "none" if value is None else _plain_value(value)
    return result


def to_toml(values: Any) -> str:
    """Returns a config, or a dict of plain values, as TOML text.

    Example:
        >>> print(to_toml({"seed": 0, "adapter": {"rank": 8}}), end="")
        seed = 0
        <BLANKLINE>
        [adapter]
        rank = 8
    """
    import tomli_w

    return tomli_w.dumps(plain(values) if dataclasses.is_dataclass(values) else _plain_value(values))


def read_toml(file: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        BadFile: it is missing, unreadable, no regular file, too large, not UTF-8, or not TOML (with line and column).
    """
    try:
        return tomllib.loads(read_given(Path(file), "config-bytes").decode("utf-8"))
    except BadFile as error:
        raise BadFile(f"{file} {error}") from None
    except RecursionError:
        raise BadFile(f"{file} is not valid TOML: its values are nested too deep") from None
    except FileNotFoundError:
        raise BadFile(f"there is no config file {file}") from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise BadFile(f"{file} is not valid TOML: {error}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise BadFile(f"{file} is not valid TOML: {str(error).partition(';')[0]}") from None
    except OSError as error:
        raise BadFile(f"cannot read {file}: {error.strerror}") from error


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` words from a command line; :func:`build` finds each value's type from its field.

    Raises:
        BadConfig: a word without ``=``, or a key that is given twice.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Rank:
        ...     rank: int = 8
        ...     targets: tuple[str, ...] = ()
        >>> build(Rank, assignments(["rank=4", "targets=to_q,to_k"]))
        Rank(rank=4, targets=('to_q', 'to_k'))
    """
    result: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadConfig(f"{text!r} is not of the form key=value, such as rank=8")
        if key in result:
            raise BadConfig(f"{key} is given twice: {str(result[key])!r} and {value!r}")
        result[key] = Text(value.strip())
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Names what differs between two dicts of plain values, one sentence part each, in sorted order.

    Example:
        >>> differences({"seed": 0, "adapter": {"rank": 8}}, {"seed": 1, "adapter": {"rank": 8}})
        ['seed was 0 and is 1']
    """
    found: list[str] = []
    for key in sorted({*old, *new}):
        name, before, after = prefix + key, old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, prefix=f"{name}.")
        elif _plain_value(before) != _plain_value(after):
            found.append(f"{name} was {_shown(old, key)} and is {_shown(new, key)}")
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(_plain_value(values[key])) if key in values else "not given"


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [_plain_value(entry) for entry in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


def _nested(values: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Makes ``{"adapter.rank": 8}`` into ``{"adapter": {"rank": 8}}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        head, dot, rest = key.partition(".")
        if not dot:
            if head in result:
                raise BadConfig(f"{title}.{head} is given both as a whole and by its fields")
            result[head] = value
        else:
            inner = result.setdefault(head, {})
            if not isinstance(inner, dict):
                raise BadConfig(f"{title}.{head} is given both as a whole and by its fields")
            result[head] = {**inner, rest: value}
    return result


def finite(value: float) -> bool:
    """Says whether ``value`` is a number that is neither infinite nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def own_number(value: Any) -> Any:
    """Returns a single number of numpy or torch as Python's own, and everything else as it is.

    Example:
        >>> import torch
        >>> own_number(torch.tensor(3)), own_number("three")
        (3, 'three')
    """
    return value.item() if _of_arrays(value) and value.shape == () else value


def whole_from_one(name: str, value: Any) -> int:
    """Returns a number of its own that has to be whole and at least 1.

    Args:
        name: what messages call it. value: the number; one of numpy or torch will do.

    Raises:
        BadConfig: it is something else.
    """
    value = own_number(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadConfig(f"{name}={value!r} must be a whole number from 1 on")
    return value


def listed(value: Any) -> Any:
    """Returns a row of numbers of numpy or torch as a list of Python's own, and everything else as it is.

    Example:
        >>> import torch
        >>> listed(torch.arange(3)), listed("three")
        ([0, 1, 2], 'three')
    """
    return value.tolist() if _of_arrays(value) and len(value.shape) == 1 else value


def _of_arrays(value: Any) -> bool:
    """Whether a value is a number or an array of numpy or torch, which are not imported for the question."""
    return type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "shape")


class _Mismatch(Exception):
    """A value does not have the type that was tried; the message says what was expected."""


def _convert(value: Any, expected: Any, where: str) -> Any:
    try:
        return _as(value, expected, where)
    except _Mismatch:
        shown = repr(str(value)) if isinstance(value, (Text, Path)) else repr(value)
        half = isinstance(value, str) and not is_text(value)
        why = ", which holds half a surrogate pair, and that is no character" if half else ""
        raise BadConfig(f"{where} must be {_words(expected)}, not {shown}{why}") from None


_hints = functools.lru_cache(maxsize=256)(typing.get_type_hints)


def _annotations(cls: Any) -> dict[str, Any]:
    return _hints(cls)


def _as(value: Any, expected: Any, where: str) -> Any:
    if isinstance(value, Text):
        return _from_text(value, expected, where)
    value = own_number(value)
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any or expected is object:
        return value
    if origin is Union or origin is types.UnionType:
        return _as_one_of(value, arguments, where)
    if origin is Literal:
        return _as_choice(value, arguments)
    if origin is tuple:
        return _as_tuple(value, arguments, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _as_table(value, arguments, where)
    return _as_plain(value, type(None) if expected is None else origin or expected, where)


def _as_choice(value: Any, choices: Sequence[Any]) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise _Mismatch


def _as_table(value: Any, expected: Sequence[Any], where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Mismatch
    return {_as(key, expected[0], where): _as(entry, expected[1], where) for key, entry in value.items()}


def _as_plain(value: Any, expected: Any, where: str) -> Any:
    if not isinstance(expected, type):
        return value
    if dataclasses.is_dataclass(expected) and isinstance(value, Mapping):
        return build(expected, value, where=where)
    if expected is float and isinstance(value, int) and finite(value):
        return float(value)
    if expected is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    if isinstance(value, bool) and expected is not bool:
        raise _Mismatch  # True is an int to Python, and never what the user meant
    if not isinstance(value, expected) or (isinstance(value, str) and not is_text(value)):
        raise _Mismatch
    return value


def _as_one_of(value: Any, expected: Sequence[Any], where: str) -> Any:
    if value == "none" and type(None) in expected and str not in expected:
        return None
    # the exact type first, so that 3 stays a whole number in `float | int`
    for one in sorted(expected, key=lambda one: type(value) is not one):
        try:
            return _as(value, one, where)
        except _Mismatch:
            continue
    raise _Mismatch


def _as_tuple(value: Any, expected: Sequence[Any], where: str) -> tuple[Any, ...]:
    value = listed(value)
    if not isinstance(value, (list, tuple, range)):
        raise _Mismatch
    if len(expected) == 2 and expected[1] is Ellipsis:
        items = tuple(_as(entry, expected[0], where) for entry in value)
    elif len(value) == len(expected):
        items = tuple(_as(entry, one, where) for entry, one in zip(value, expected, strict=True))
    else:
        raise _Mismatch
    unchanged = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if unchanged else items  # type: ignore[return-value]


def _from_text(text: Text, expected: Any, where: str) -> Any:
    """Tries the text as a TOML value, as a comma-separated list, and as it stands, in this order."""
    readings: list[Any] = []
    with contextlib.suppress(ValueError, RecursionError):  # no TOML, too many digits, too deep
        readings.append(tomllib.loads(f"value = {text}")["value"])
    readings.append(str(text))
    if _takes_tuple(expected):
        readings.append([Text(part.strip()) for part in text.split(",") if part.strip()])
    for reading in readings:
        try:
            return _as(reading, expected, where)
        except _Mismatch:
            continue
    raise _Mismatch


def _takes_tuple(expected: Any) -> bool:
    return get_origin(expected) is tuple or any(get_origin(part) is tuple for part in get_args(expected))


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _words(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Union or origin is types.UnionType:
        return " or ".join(_words(part) for part in arguments if part is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list (each entry {_words(arguments[0])})"
        return f"a list of {len(arguments)} ({', '.join(map(_words, arguments))})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a table (each value {_words(arguments[1])})"
    return _WORDS.get(expected, getattr(expected, "__name__", str(expected)))
