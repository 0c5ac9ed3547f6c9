"""What looks wrong in an adapter file, told from its header and its alphas: scales, names, hashes, types."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from studio.families import FAMILIES, family_called
from studio.files.format import Source
from studio.files.grades import Graded, counted
from studio.files.header import TensorInfo
from studio.files.stated import number

__all__ = ["HIGH", "LOW", "suspicions"]

HIGH: Final = 2.0
LOW: Final = 1 / 64
"""Scales alpha / rank beyond which somebody has most likely mistaken one number for another."""
_FUSED: Final = ("_qkv", ".qkv", "linear1")
"""Ends of layers that hold several, of which sd-scripts saves the parts in one."""
_SPLIT: Final = re.compile(r"split_qkv\W+True\b")


def suspicions(source: Source, grades: Sequence[Graded], family: str, *, own: bool) -> Iterator[str]:
    """Says what looks wrong in a file, a sentence each.

    Args:
        source: the file, with its single numbers. grades: what it says about its layers' scales.
        family: registry name of the family that its layers are of, or "". own: whether the studio wrote it.
    """
    yield from _alphas(grades)
    yield from _scales(grades)
    yield from _split(grades, source.metadata)
    yield from _contradictions(grades, source.metadata)
    yield from _types(source.infos, grades)
    if not own:
        yield from _other_family(source.metadata, family)


def _places(grades: Sequence[Graded]) -> str:
    return f"{len(grades)} layer{'s' if grades[1:] else ''} ({grades[0].module}{', ...' if grades[1:] else ''})"


def _alphas(grades: Sequence[Graded]) -> Iterator[str]:
    """Alphas that are missing, 0, or no numbers."""
    ranked = [one for one in grades if one.rank is not None and one.scale is not None]
    bare = [one for one in ranked if not one.beside]
    if bare and len(bare) < len(ranked):
        yield (
            f"alpha is missing at {_places(bare)} and stands beside the others: kohya's tools, ComfyUI and the studio "
            "take the rank there, diffusers the alpha of most layers, so it acts differently from program to program"
        )
    nothing = [one for one in ranked if math.isnan(one.scale or 0)]
    if nothing:
        yield f"alpha is NaN at {_places(nothing)}: the file is damaged, or its training came to nothing"
    zero = [one for one in ranked if one.scale == 0]
    if zero:
        yield (
            f"alpha is 0 at {_places(zero)}: they change nothing here, in ComfyUI and in diffusers, and act in full in "
            "kohya's scripts, which take the rank instead"
        )


def _scales(grades: Sequence[Graded]) -> Iterator[str]:
    """Scales that are unusual, or differ."""
    scaled = [one for one in grades if one.rank is not None and one.scale]
    high = sorted((one for one in scaled if abs(one.scale or 0) > HIGH), key=lambda one: -abs(one.scale or 0))
    low = sorted((one for one in scaled if abs(one.scale or 0) < LOW), key=lambda one: abs(one.scale or 0))
    for odd, what in ((high, "acts many times stronger than its factors"), (low, "hardly acts at strength 1")):
        if odd:
            yield (
                f"alpha/rank is {odd[0].scale:.4g} at {_places(odd)}, far from the usual 0.02 to 2: it {what}; check "
                "whether alpha was meant to be the scale"
            )
    values = counted(float(f"{one.scale:.6g}") for one in scaled if one.scale is not None)
    if len(values) > 1:
        shown = ", ".join(f"{value:g} ({count})" for value, count in list(values.items())[:6])
        yield (
            f"alpha/rank is not the same in all layers, {shown}{', ...' if len(values) > 6 else ''}: programs that "
            "know one alpha for all of them (PEFT-style files without patterns, diffusers) change the balance"
        )


def _split(grades: Sequence[Graded], metadata: Mapping[str, str]) -> Iterator[str]:
    """sd-scripts' split_qkv: the parts of a layer saved in one, with the alpha of a part."""
    usual = Counter((one.rank, one.alpha) for one in grades if not one.module.endswith(_FUSED)).most_common(1)
    rank, alpha = usual[0][0] if usual else (None, None)
    fused = [one for one in grades if one.module.endswith(_FUSED) and one.beside and one.alpha == alpha]
    odd = [one for one in fused if one.rank in ((rank or 0) * 3, (rank or 0) * 4)]
    if odd or _SPLIT.search(metadata.get("ss_network_args", "")):
        where = f"alpha/rank is a part of the others' at {_places(odd)}: " if odd else ""
        yield (
            f"{where}it was trained with split_qkv, whose parts sd-scripts saves in one layer with the alpha of a part "
            "(sd-scripts issue 2204), so that such layers act 3 or 4 times weaker than in training"
        )


def _contradictions(grades: Sequence[Graded], metadata: Mapping[str, str]) -> Iterator[str]:
    """``ss_network_dim`` and ``ss_network_alpha`` against the tensors, which count."""
    ranks, alphas = counted(one.rank for one in grades), counted(one.alpha for one in grades if one.beside)
    for key, found, word in (("ss_network_dim", ranks, "rank"), ("ss_network_alpha", alphas, "alpha")):
        stated = number(metadata.get(key, ""))
        if stated is not None and found and not any(abs(stated - one) <= 1e-3 * abs(stated) for one in found):
            shown = ", ".join(f"{one:g}" for one in list(found)[:6])
            yield (
                f"the header says {key}={stated:g}, and no layer has that {word} (they have {shown}): the tensors "
                "count; the file was resized or merged by a tool that left the header as it was"
            )


def _types(infos: Mapping[str, TensorInfo], grades: Sequence[Graded]) -> Iterator[str]:
    whole = [one for one in grades if one.whole]
    if whole:
        yield (
            f"alpha is stored as a whole number at {_places(whole)}, as diffusers' converter and kohya's extraction "
            "write it: it is most likely the rank, and an alpha that was trained with is lost"
        )
    small = counted(info.dtype for info in infos.values() if info.dtype.startswith("F8"))
    if small:
        yield (
            f"{sum(small.values())} tensors are of 8 bits ({', '.join(small)}), with two or three digits behind the "
            "point in binary: every number is off by up to 6 % (E4M3) or 12 % (E5M2), and many programs cannot read it"
        )


def _other_family(metadata: Mapping[str, str], family: str) -> Iterator[str]:
    """A family in the header that the layers are not of."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        row = family_called(metadata.get(key, ""))
        if row is not None and family and row.name != family:
            title = FAMILIES[family].title if family in FAMILIES else family
            yield (
                f"the header says {key}={json.dumps(metadata[key][:60])}, which is {row.title}, and its layers are "
                f"those of {title}: the layers count"
            )
            return
