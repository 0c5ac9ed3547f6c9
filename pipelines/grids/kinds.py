"""What can change along an axis: one row for each, from a value to a picture that is wanted otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from studio.adapters import Strength
from studio.config import finite
from studio.errors import BadConfig, UnknownName, nearest
from studio.pipelines.asking import Wanted
from studio.pipelines.grids.axis import Axis
from studio.pipelines.image import ImagePipeline
from studio.pipelines.schedulers import SCHEDULERS, scheduler_named
from studio.registry import Registry

__all__ = ["AXES", "AxisKind", "changes_of"]

Change = Callable[[Wanted], Wanted]
_SIZE: Final = re.compile(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*")


@dataclass(frozen=True, kw_only=True)
class AxisKind:
    """A thing that can change.

    Args:
        about: what it is, for lists.
        read: ``text or value -> value``; raises ``ValueError`` for none.
        change: ``(pipe, what of it, value) -> change`` of a picture that is wanted.
        of: what stands behind its name and a colon: ``""`` nothing, else what it is called.
        needs: whether something must stand there.
        label: ``(axis, value) -> text`` on the sheet.
        turn: which changes come first: whole prompts before what is changed in them, all adapters off at last.
    """

    about: str
    read: Callable[[Any], Any]
    change: Callable[[ImagePipeline, str, Any], Change]
    of: str = ""
    needs: bool = False
    label: Callable[[Axis, Any], str] = lambda axis, value: f"{axis.of or axis.name} {_shown(value)}"
    turn: int = 1


AXES: Registry[AxisKind] = Registry("axis")
"""Name -> what changes."""


def changes_of(pipe: ImagePipeline, axis: Axis) -> list[tuple[str, Change]]:
    """Returns label and change for every value of an axis.

    Args:
        pipe: which shall draw. axis: its name and its values.

    Raises:
        UnknownName: no axis, adapter or scheduler has that name.
        BadConfig: a value that is none, or an axis without what it is of, or with it.
    """
    kind = AXES[axis.name]
    if kind.needs and not axis.of:
        raise BadConfig(f"the axis {axis.name!r} is of one {kind.of}: write {axis.name}:{kind.of.upper()}=...")
    if axis.of and not kind.of:
        raise BadConfig(f"the axis {axis.title!r} has {axis.of!r} behind its name, and {axis.name} is of nothing")
    made = []
    for given in axis.values:
        try:
            value = kind.read(given)
        except (ValueError, TypeError, AttributeError):
            raise BadConfig(f"{given!r} is no value of the axis {axis.title!r} ({kind.about})") from None
        made.append((kind.label(axis, value), kind.change(pipe, axis.of, value)))
    return made


def _set(field: str) -> Callable[[ImagePipeline, str, Any], Change]:
    return lambda pipe, of, value: lambda wanted: replace(wanted, **{field: value})


def _whole(value: Any) -> int:
    number = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value).strip())
    if abs(number) >= 2**63:
        raise ValueError(number)
    return number


def _decimal(value: Any) -> float:
    number = float(value)
    if not finite(number) or isinstance(value, bool):
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _size(value: Any) -> tuple[int, int]:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    width, height = found.groups() if found else value
    return _whole(width), _whole(height)


def _scheduler(value: Any) -> str:
    name = scheduler_named(_text(value))
    if name is None:
        SCHEDULERS[value]  # says which there are
        raise ValueError(value)
    return name


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value.strip().lower() not in ("on", "off"):
        raise ValueError(value)
    return bool(value.strip().lower() == "on")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _strength(pipe: ImagePipeline, name: str, value: float) -> Change:
    """Of one adapter: in the tag where a prompt has tags, else in the blend."""
    if name not in pipe.adapters:
        close = nearest(name, pipe.adapters, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(f"no adapter is called {name!r}{hint} (loaded: {', '.join(pipe.adapters) or 'none'})")
    own, any_tag = _tag(name), re.compile(r"(?<!\\)<(?:lora:)?[\w.-]+(?::[^<>]*)?>")

    def change(wanted: Wanted) -> Wanted:
        tag = f"<{name}:{value:g}>"
        if own.search(wanted.prompt):
            return _reworded(wanted, lambda text: own.sub(lambda found: tag, text))
        if any_tag.search(wanted.prompt):
            return _reworded(wanted, lambda text: f"{text} {tag}")
        blend = _acting(pipe, wanted)
        before = blend.get(name)
        if isinstance(before, Strength) and before.value:  # its blocks, schedule and mask stay
            return replace(wanted, blend={**blend, name: before * (value / before.value)})
        return replace(wanted, blend={**blend, name: value})

    return change


def _reworded(wanted: Wanted, change: Callable[[str], str]) -> Wanted:
    """The same with other words, in what the prompt became by its choices too, where that is known."""
    resolved = None if wanted.resolved is None else (change(wanted.resolved[0]), wanted.resolved[1])
    return replace(wanted, prompt=change(wanted.prompt), resolved=resolved)


def _without(pipe: ImagePipeline, of: str, value: str) -> Change:
    return lambda wanted: replace(wanted, negative=value, resolved=None)


def _tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\\)<(?:lora:)?{re.escape(name)}(?::[^<>]*)?>")


def _acting(pipe: ImagePipeline, wanted: Wanted) -> dict[str, Any]:
    from studio.adapters import current_blend

    if isinstance(wanted.blend, str):
        return {wanted.blend: 1.0}
    return dict(current_blend(pipe.pipe) if wanted.blend is None else wanted.blend)


def _adapters(pipe: ImagePipeline, of: str, on: bool) -> Change:
    """All of them, or none: the base alone."""
    tags = [_tag(name) for name in pipe.adapters]

    def without(text: str) -> str:
        bare = text
        for tag in tags:
            bare = tag.sub("", bare)
        return text if bare == text else " ".join(bare.split())

    return (lambda wanted: wanted) if on else lambda wanted: replace(_reworded(wanted, without), blend={})


def _replaced(pipe: ImagePipeline, word: str, value: str) -> Change:
    """A word of the prompt (A1111's "Prompt S/R"), or the whole prompt."""

    def change(wanted: Wanted) -> Wanted:
        if not word:
            return replace(wanted, prompt=value, resolved=None)
        if word not in wanted.prompt:
            raise BadConfig(f"the prompt {wanted.prompt[:200]!r} does not say {word!r}, which an axis replaces")
        return _reworded(wanted, lambda text: text.replace(word, value))

    return change


def _resized(pipe: ImagePipeline, of: str, value: tuple[int, int]) -> Change:
    return lambda wanted: replace(wanted, width=value[0], height=value[1])


def _valued(axis: Axis, value: Any) -> str:
    return str(value) or "-"


AXES.add("seed", AxisKind(about="a whole number from 0 on", read=_whole, change=_set("seed")))
AXES.add("steps", AxisKind(about="denoising steps", read=_whole, change=_set("steps")))
AXES.add("guidance", AxisKind(about="guidance scale", read=_decimal, change=_set("guidance")))
AXES.add(
    "embedded-guidance",
    AxisKind(about="guidance that a base embeds", read=_decimal, change=_set("embedded_guidance")),
)
AXES.add("width", AxisKind(about="pixels", read=_whole, change=_set("width")))
AXES.add("height", AxisKind(about="pixels", read=_whole, change=_set("height")))
AXES.add(
    "size",
    AxisKind(
        about="width and height in pixels, 512x768", read=_size, change=_resized,
        label=lambda axis, value: f"{value[0]} x {value[1]}",
    ),
)  # fmt: skip
AXES.add(
    "scheduler",
    AxisKind(about="a scheduler's name", read=_scheduler, change=_set("scheduler"), label=_valued),
)
AXES.add(
    "negative",
    AxisKind(
        about="what guidance leads away from", read=_text, change=_without,
        label=lambda axis, value: f"not: {value or '-'}",
    ),
)  # fmt: skip
AXES.add(
    "prompt",
    AxisKind(
        about="a prompt, or what stands for a word of it",
        read=_text,
        change=_replaced,
        of="word",
        label=_valued,
        turn=0,
    ),
)
AXES.add(
    "strength",
    AxisKind(about="the strength of an adapter", read=_decimal, change=_strength, of="adapter", needs=True),
)
AXES.add(
    "adapters",
    AxisKind(
        about="on, or off: the base alone", read=_switch, change=_adapters, turn=2,
        label=lambda axis, value: "with adapters" if value else "base",
    ),
)  # fmt: skip
AXES.add(
    "image-strength",
    AxisKind(about="how much of a given picture is drawn anew", read=_decimal, change=_set("strength")),
)
AXES.add("upscale", AxisKind(about="how much larger it is drawn again", read=_decimal, change=_set("upscale")))
AXES.add(
    "upscale-strength",
    AxisKind(about="how much the second pass draws anew", read=_decimal, change=_set("upscale_strength")),
)
