"""Rows of a change: what of an adapter's tensors makes some of the outputs of a layer that others keep in one.

Those who trained a base often have q, k and v in one matrix where diffusers' module has three. An adapter of the one is
then three adapters, each with the rows that belong to it, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from studio.errors import DoesNotFit

__all__ = ["Rows", "cut_rows", "joined_rows"]


class Rows(NamedTuple):
    """Outputs ``begin`` up to ``end`` of the ``total`` that a layer has."""

    begin: int
    end: int
    total: int

    def of(self, count: int) -> tuple[int, int] | None:
        """Returns which of ``count`` equal blocks of the outputs these are; None where one of them is cut in two.

        Example:
            >>> Rows(2, 4, 6).of(3), Rows(2, 4, 6).of(2)
            ((1, 2), None)
        """
        begin, end = self.begin * count, self.end * count
        return None if begin % self.total or end % self.total else (begin // self.total, end // self.total)


def cut_rows(tensors: Mapping[str, Tensor], names: Sequence[str], rows: Rows) -> dict[str, Tensor]:
    """Returns the tensors with the part of those in ``names``, along their first axis, that makes these outputs.

    Args:
        tensors: by name. names: those whose first axis runs over all outputs, one by one or in equal blocks.
        rows: which outputs.

    Raises:
        DoesNotFit: a block of a tensor makes outputs inside and outside of them.

    Example:
        >>> {name: len(one) for name, one in cut_rows({"up": torch.ones(6, 2), "down": torch.ones(2, 8)}, ("up",),
        ...                                           Rows(2, 4, 6)).items()}
        {'up': 2, 'down': 2}
    """
    cut: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in names:
            cut[name] = tensor.clone()
            continue
        place = rows.of(len(tensor))
        if place is None:
            raise DoesNotFit(
                f"its {name} has {len(tensor)} blocks, which make the outputs {rows.begin} to {rows.end} of "
                f"{rows.total} together with others"
            )
        cut[name] = tensor[place[0] : place[1]].clone()
    return cut


def joined_rows(layers: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """Returns the tensors of which :func:`cut_rows` gives these, layer after layer.

    Args:
        layers: name -> tensor of each layer. names: those whose first axis runs over the outputs.

    Raises:
        DoesNotFit: the layers do not share the other tensors.
    """
    first = layers[0]
    for other in layers[1:]:
        differing = [name for name in first if name not in names and not torch.equal(first[name], other[name])]
        if differing:
            raise DoesNotFit(f"their {', '.join(differing)} differ, and one layer has one of each")
    return {name: torch.cat([own[name] for own in layers]) if name in names else first[name] for name in first}
