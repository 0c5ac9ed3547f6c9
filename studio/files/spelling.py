"""Which tensors of a file make which method: tables made from what the methods say about themselves.

A *part* is what a key ends in ("lora_A.weight"). Two dialects spell parts: PEFT's, and kohya's with LyCORIS.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from studio.adapters import METHODS, Adapter, AdapterConfig
from studio.adapters.contract.foreign import Foreign
from studio.errors import nearest
from studio.files.elsewhere import ELSEWHERE

__all__ = [
    "EXTRAS",
    "WHOLE",
    "Spelling",
    "first_spelling",
    "is_part",
    "nearest_part",
    "part_of",
    "recognise",
    "shared_parts",
    "with_axes",
]

EXTRAS: Final = ("alpha",)
"""Parts that belong to no tensor of ours: they are worked into the others."""

WHOLE: Final = frozenset({"weight", "bias"})
"""Parts that are tensors of the base itself, when they stand alone."""


@dataclass(frozen=True)
class Spelling:
    """How one method is spelled in one dialect.

    Attributes:
        method: the method's registry name. dialect: "peft" or "lycoris".
        ours: part -> our tensors of that name, one or two.
        needs: parts without which it is not this method. ranks: parts whose first axis is the rank, the best first.
    """

    method: str
    dialect: str
    ours: Mapping[str, tuple[str, ...]]
    needs: frozenset[str]
    ranks: tuple[str, ...]

    @property
    def config(self) -> type[AdapterConfig]:
        """The method's config class."""
        return METHODS[self.method]

    @property
    def adapter(self) -> type[Adapter]:
        """The method's adapter class."""
        return METHODS[self.method].adapter

    @property
    def names(self) -> Foreign:
        """The table of the names that are spelled."""
        return self.adapter.peft if self.dialect == "peft" else self.adapter.lycoris


def _reversed(tensors: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    ours: dict[str, tuple[str, ...]] = {}
    for name, part in tensors.items():
        ours[part] = (*ours.get(part, ()), name)
    return ours


def _spellings_of(method: str, adapter: type[Adapter]) -> Iterator[Spelling]:
    for dialect, tensors in (
        ("peft", adapter.peft.tensors),
        ("lycoris", adapter.lycoris.tensors),
        ("peft", adapter.peft.embedding),
        ("lycoris", adapter.lycoris.norm),
    ):
        if not tensors:
            continue
        ours = _reversed(tensors)
        if adapter.or_needs:
            other = frozenset(tensors[name] for name in adapter.or_needs if name in tensors)
            yield Spelling(method, dialect, ours, other, tuple(tensors[name] for name in adapter.ranks))
        needs = {tensors[name] for name in adapter.needs}
        if adapter.either is not None and dialect == "lycoris":
            needs |= {adapter.either.flag, *ours}
            ours[adapter.either.flag] = ()
        yield Spelling(method, dialect, ours, frozenset(needs), tuple(tensors[name] for name in adapter.ranks))


@functools.cache
def _spellings() -> tuple[Spelling, ...]:
    """All of them, those with more required parts first; files of methods on whole models have no layers."""
    layered = ((name, METHODS[name].adapter) for name in METHODS if "model" not in METHODS[name].adapter.kinds)
    found = [spelling for name, adapter in layered for spelling in _spellings_of(name, adapter)]
    return tuple(sorted(found, key=lambda spelling: -len(spelling.needs)))


@functools.cache
def _aliases() -> dict[str, str]:
    """Other spellings of the same parts."""
    return {alias: part for config in METHODS.values() for alias, part in config.adapter.peft.aliases.items()}


def first_spelling(part: str) -> str:
    """Returns the first spelling of a part that has several.

    Example:
        >>> first_spelling("lora.down.weight"), first_spelling("lora_A.weight")
        ('lora_A.weight', 'lora_A.weight')
    """
    return _aliases().get(part, part)


@functools.cache
def _parts() -> frozenset[str]:
    known = {part for spelling in _spellings() for part in spelling.ours}
    known |= {part.partition("/")[0] for part in known}
    return frozenset(known | set(_aliases()) | set(EXTRAS) | set(ELSEWHERE) | WHOLE)


def with_axes(part: str, axes: int) -> str:
    """Tells parts of one name apart by their number of axes, where methods do: "oft_blocks/3" from "oft_blocks/4"."""
    marked = f"{part}/{axes}"
    return marked if marked in _parts() else part


@functools.cache
def shared_parts() -> frozenset[str]:
    """Returns what keys of tensors end in that all layers of a model share."""
    return frozenset(part for config in METHODS.values() for part in config.adapter.peft.shared.values())


def part_of(key: str) -> tuple[str, str] | None:
    """Splits a dotted key into the module's name and the part, in its first spelling; None for an unknown end.

    Example:
        >>> part_of("unet.mid_block.to_q.lora.down.weight")
        ('unet.mid_block.to_q', 'lora_A.weight')
    """
    known = _parts()
    ends: list[tuple[str, str]] = []
    rest = key
    for _ in range(3):  # no part has more words; the longest counts
        rest, _, last = rest.rpartition(".")
        ends.append((rest, f"{last}.{ends[-1][1]}" if ends else last))
        if not rest:
            break
    for module, part in reversed(ends):
        if part in known:
            return module, first_spelling(part)
    return None


def is_part(part: str) -> bool:
    """Says whether ``part`` is one that a key can end in."""
    return part in _parts()


def nearest_part(key: str) -> str:
    """Returns the known part that the end of ``key`` looks most like."""
    ends = key.split(".")
    tail = ".".join(ends[-2:]) if ends[-1] in WHOLE else ends[-1]
    known = {part.partition("/")[0] for part in _parts() - set(_aliases()) - WHOLE}
    return nearest(tail, known, 1)[0]


@functools.lru_cache(maxsize=1024)
def _recognise(parts: frozenset[str], preferred: str) -> Spelling | str:
    own = parts - set(EXTRAS)
    if own and own <= WHOLE:
        return "it is a whole tensor of the base (PEFT's bias or modules_to_save, or a checkpoint), not an adapter's"
    for spelling in sorted(_spellings(), key=lambda spelling: spelling.method not in preferred.split("+")):
        if own and own <= set(spelling.ours) and spelling.needs <= own:
            return spelling
    ours = {part for spelling in _spellings() for part in spelling.ours}
    for part in sorted(own - ours):
        if part in ELSEWHERE:
            known = ", ".join(METHODS)
            return f"it is of another method, {ELSEWHERE[part]}, which is not among those that can be read ({known})"
    best = max(_spellings(), key=lambda spelling: (len(own & set(spelling.ours)), -len(spelling.needs)))
    missing = sorted(best.needs - own)
    if own and own <= set(best.ours) and missing:
        return f"it is incomplete: {', '.join(missing)} of the same layer is not in the file"
    if not own:
        return "it belongs to no other tensor of its layer in this file"
    return f"the tensors {', '.join(sorted(own))} of its layer belong to no method together"


def recognise(parts: Iterable[str], preferred: str = "") -> Spelling | str:
    """Says of which method the parts of one layer are, or in words why of none.

    Args:
        parts: of the layer. preferred: the method that counts where several have tensors of these names, or several of
            them ("lora+full").
    """
    return _recognise(frozenset(parts), preferred)
