"""Groups: the rows of a batch that have one blend, of a batch whose rows have blends of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studio.adapters.contract.strength import Strength
from studio.errors import DoesNotFit

__all__ = ["Group", "blends_of", "grouped"]


@dataclass(frozen=True)
class Group:
    """Rows that have one blend: adapter name -> strength, and the rows in ascending order."""

    strengths: Mapping[str, Strength]
    rows: tuple[int, ...]


def blends_of(strengths: Mapping[str, Strength]) -> list[dict[str, Strength]] | None:
    """Returns the blend of each sample, or None where the strengths do not differ by sample.

    Args:
        strengths: adapter name -> strength.

    Raises:
        DoesNotFit: strengths of different numbers of samples.

    Example:
        >>> blends_of({"dog": Strength(0.5, samples=[1, 2])})[1]["dog"].value
        1.0
    """
    lengths = {name: len(one.samples) for name, one in strengths.items() if one.samples is not None}
    if not lengths:
        return None
    (first, count), *others = lengths.items()
    for name, length in others:
        if length != count:
            raise DoesNotFit(
                f"the strength of {first!r} has {count} samples and that of {name!r} has {length}; give each one per "
                "sample of the batch"
            )
    return [{name: _of_sample(one, index) for name, one in strengths.items()} for index in range(count)]


def _of_sample(strength: Strength, index: int) -> Strength:
    if strength.samples is None:
        return strength
    alone = copy.copy(strength)
    object.__setattr__(alone, "value", strength.value * strength.samples[index])
    object.__setattr__(alone, "samples", None)
    return alone


def grouped(blends: Sequence[Mapping[str, Strength]], rows: Sequence[int] | None) -> tuple[Group, ...]:
    """Returns the rows of a batch by their blends, in the order in which these first appear.

    Args:
        blends: of each sample. rows: the sample of each row; None: every row is its own sample.

    Raises:
        DoesNotFit: rows of samples that there are not.
    """
    owners = range(len(blends)) if rows is None else rows
    if max(owners) >= len(blends):
        raise DoesNotFit(f"sample_rows names sample {max(owners)}; the blend has {len(blends)} samples")
    found: dict[frozenset[tuple[str, Strength]], list[int]] = {}
    for row, owner in enumerate(owners):
        found.setdefault(frozenset(blends[owner].items()), []).append(row)
    return tuple(Group(blends[owners[places[0]]], tuple(places)) for places in found.values())
