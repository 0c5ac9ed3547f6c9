"""Which blend acts on which picture of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from studio.adapters import Strength
from studio.adapters.contract.strength import StrengthLike, as_strength
from studio.errors import BadConfig

__all__ = ["BlendLike", "deal_blend", "together"]

BlendLike = Mapping[str, StrengthLike]
Reader: TypeAlias = Callable[[str, StrengthLike], Strength]


def deal_blend(
    blend: BlendLike | str | Sequence[BlendLike] | None,
    tags: Sequence[BlendLike | None],
    current: Mapping[str, Strength],
    *,
    what: str = "pictures",
    read: Reader = lambda name, value: as_strength(value),
) -> list[dict[str, Strength] | None]:
    """Deals a blend out to pictures, or to whatever is made.

    Args:
        blend: ``None``, one dict, the name of one adapter, or one dict per picture; a list of numbers as a strength in
            one dict has one entry per picture.
        tags: for every picture, what the tags of its prompt say; they win over ``blend``.
        current: the current blend.
        what: what the pictures are called in messages.
        read: ``(name, value) -> strength`` of an adapter, for values that mean something on its base alone.

    Returns:
        One blend per picture; ``None`` where the current one acts as it is.

    Raises:
        BadConfig: a list whose length is not the number of pictures, or a strength that is not a finite number.

    Example:
        >>> dealt = deal_blend({"dog": [0.2, 0.8]}, [None, None], {})
        >>> [blend["dog"].value for blend in dealt]
        [0.2, 0.8]
        >>> deal_blend(None, [None, {"dog": 0.5}], {})[1]["dog"].value
        0.5
    """
    given = _dealt(blend, current, len(tags), what, read)
    return [
        one if tagged is None else {name: read(name, value) for name, value in tagged.items()}
        for one, tagged in zip(given, tags, strict=True)
    ]


def together(blends: Sequence[Mapping[str, Strength] | None]) -> list[list[int]]:
    """Returns the places with equal blends, each group in order.

    Args:
        blends: what :func:`deal_blend` dealt out.

    Example:
        >>> together([{"dog": Strength(1.0)}, None, {"dog": Strength(1.0)}])
        [[0, 2], [1]]
    """
    groups: list[tuple[Mapping[str, Strength] | None, list[int]]] = []
    for place, blend in enumerate(blends):
        for held, members in groups:
            if held == blend:
                members.append(place)
                break
        else:
            groups.append((blend, [place]))
    return [members for _, members in groups]


def _dealt(
    blend: BlendLike | str | Sequence[BlendLike] | None,
    current: Mapping[str, Strength],
    count: int,
    what: str,
    read: Reader,
) -> list[dict[str, Strength] | None]:
    if blend is None:
        if all(strength.samples is None for strength in current.values()):
            return [None] * count
        blend = current
    if isinstance(blend, str):
        blend = {blend: 1.0}
    if isinstance(blend, Mapping):
        return [_for_picture(blend, index, count, what, read) for index in range(count)]
    if not isinstance(blend, Iterable) or isinstance(blend, bytes):
        raise BadConfig(f"a blend is a dict of adapters and strengths, or the name of one adapter, not {blend!r}")
    given = list(blend)
    if len(given) != count:
        many = " (prompts times seeds)" if what == "pictures" else ""
        raise BadConfig(f"{len(given)} blends for {count} {what}{many}; give one dict, or one per {what[:-1]}")
    return [_for_picture(one, 0, 1, what, read) for one in given]


def _for_picture(blend: BlendLike, index: int, count: int, what: str, read: Reader) -> dict[str, Strength]:
    if not isinstance(blend, Mapping):
        raise BadConfig(f"a blend is a dict of adapters and strengths, not {blend!r}")
    dealt = {}
    for name, value in blend.items():
        if not isinstance(name, str):
            raise BadConfig(f"a blend names adapters, and {name!r} is no name")
        strength = read(name, value)
        if strength.samples is not None:
            if len(strength.samples) != count:
                raise BadConfig(
                    f"the strength of {name!r} has {len(strength.samples)} entries for {count} {what}; "
                    f"give one per {what[:-1]}"
                )
            strength = strength.of_sample(index)
        dealt[name] = strength
    return dealt
