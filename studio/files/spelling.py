"""Which tensors of a file make which method: tables made from what the methods say about themselves.

A *part* is what a key ends in ("lora_A.weight"). Two dialects spell parts: PEFT's, and kohya's with LyCORIS.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from studio.adapters import METHODS, Foreign
from studio.errors import nearest

__all__ = [
    "ALIASES",
    "EXTRAS",
    "WHOLE",
    "Spelling",
    "is_part",
    "nearest_part",
    "part_of",
    "recognise",
    "shared_parts",
    "with_axes",
]

EXTRAS: Final = ("alpha", "lora_mid.weight")
"""Parts that belong to no tensor of ours: they are worked into the others."""

ALIASES: Final[Mapping[str, str]] = {
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "magnitude": "lora_magnitude_vector",
}
"""Other spellings of the same parts."""

WHOLE: Final = frozenset({"weight", "bias"})
"""Parts that are tensors of the base itself, when they stand alone."""

_ELSEWHERE: Final[Mapping[str, str]] = {
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "bm.weight": "GLoRA",
    "diff": "a full difference of the weight",
    "set_weight": "a replaced weight",
    "w_norm": "a trained normalisation",
    "b_norm": "a trained normalisation",
    "miss_block": "MiSS",
    "c3a_kernel": "C3A",
    "fourierft_spectrum": "FourierFT",
}


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
    def foreign(self) -> Foreign:
        """The method's own table."""
        return METHODS[self.method].adapter.foreign


def _reversed(tensors: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    ours: dict[str, tuple[str, ...]] = {}
    for name, part in tensors.items():
        ours[part] = (*ours.get(part, ()), name)
    return ours


@functools.cache
def _spellings() -> tuple[Spelling, ...]:
    """All of them, those with more required parts first."""
    found = []
    for method, config in METHODS.items():
        if "model" in config.adapter.kinds:
            continue  # its files have no layers
        foreign = config.adapter.foreign
        tables = [("peft", foreign.peft_tensors), ("lycoris", foreign.lycoris_tensors)]
        if foreign.peft_embedding:
            tables.append(("peft", foreign.peft_embedding))
        for dialect, tensors in tables:
            if not tensors:
                continue
            needs = {tensors[name] for name in foreign.needs}
            ours = _reversed(tensors)
            if foreign.inputs and dialect == "lycoris":
                needs |= {foreign.inputs[1], *ours}
                ours[foreign.inputs[1]] = ()
            ranks = tuple(tensors[name] for name in foreign.ranks)
            found.append(Spelling(method, dialect, ours, frozenset(needs), ranks))
    return tuple(sorted(found, key=lambda spelling: -len(spelling.needs)))


@functools.cache
def _parts() -> frozenset[str]:
    known = {part for spelling in _spellings() for part in spelling.ours}
    known |= {part.partition("/")[0] for part in known}
    return frozenset(known | set(ALIASES) | set(EXTRAS) | set(_ELSEWHERE) | WHOLE)


def with_axes(part: str, axes: int) -> str:
    """Tells parts of one name apart by their number of axes, where methods do: "oft_blocks/3" from "oft_blocks/4"."""
    marked = f"{part}/{axes}"
    return marked if marked in _parts() else part


@functools.cache
def shared_parts() -> frozenset[str]:
    """Returns what keys of tensors end in that all layers of a model share."""
    return frozenset(part for config in METHODS.values() for part in config.adapter.foreign.peft_shared.values())


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
            return module, ALIASES.get(part, part)
    return None


def is_part(part: str) -> bool:
    """Says whether ``part`` is one that a key can end in."""
    return part in _parts()


def nearest_part(key: str) -> str:
    """Returns the known part that the end of ``key`` looks most like."""
    ends = key.split(".")
    tail = ".".join(ends[-2:]) if ends[-1] in WHOLE else ends[-1]
    known = {part.partition("/")[0] for part in _parts() - set(ALIASES) - WHOLE}
    return nearest(tail, known, 1)[0]


@functools.lru_cache(maxsize=1024)
def _recognise(parts: frozenset[str], preferred: str) -> Spelling | str:
    own = parts - set(EXTRAS)
    if own and own <= WHOLE:
        return "it is a whole tensor of the base (PEFT's bias or modules_to_save, or a checkpoint), not an adapter's"
    for part in sorted(own):
        if part in _ELSEWHERE:
            known = ", ".join(METHODS)
            return f"it is of another method, {_ELSEWHERE[part]}, which is not among those that can be read ({known})"
    for spelling in sorted(_spellings(), key=lambda spelling: spelling.method != preferred):
        if own and own <= set(spelling.ours) and spelling.needs <= own:
            return spelling
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
        parts: of the layer. preferred: the method that counts where several have tensors of these names.
    """
    return _recognise(frozenset(parts), preferred)
