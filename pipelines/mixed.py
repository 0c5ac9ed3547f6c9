"""Batches of texts under blends of their own: in one pass where the adapters allow it, else a pass for each blend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import studio.adapters as core
from studio.adapters import Strength, blended, blended_samples
from studio.adapters.sites.parameter import experts_in
from studio.adapters.tokens.contract import TokenConfig
from studio.config import whole_from_one
from studio.pipelines.blends import together

__all__ = ["batches_under"]


def batches_under(
    model: Any, blends: Sequence[Mapping[str, Strength] | None], batch_size: Any, *, mixed: bool = True
) -> Iterator[tuple[list[int], contextlib.AbstractContextManager[None]]]:
    """Shares samples out to passes.

    Args:
        model: the model. blends: of each sample; None for what is baked. batch_size: samples of a pass at most.
        mixed: whether a pass may hold samples of several blends.

    Returns:
        Of each pass the places of its samples, and the context in which their blends act.

    Raises:
        BadConfig: a batch size below 1.
    """
    batch_size = whole_from_one("batch_size", batch_size)
    groups = together(blends)
    if mixed and len(groups) > 1 and _mixes(model, blends):
        for begin in range(0, len(blends), batch_size):
            places = list(range(begin, min(begin + batch_size, len(blends))))
            some = [blends[place] or {} for place in places]
            yield places, blended(model, some[0]) if len(together(some)) == 1 else blended_samples(model, some)
        return
    for members in groups:
        for begin in range(0, len(members), batch_size):
            wanted = blends[members[0]]
            context = contextlib.nullcontext() if wanted is None else blended(model, wanted)
            yield members[begin : begin + batch_size], context


def _mixes(model: Any, blends: Sequence[Mapping[str, Strength] | None]) -> bool:
    """Whether the samples of one pass may have blends of their own.

    Virtual tokens make rows of different lengths, experts are called with tokens in another order than the rows, and
    strengths with entries per sample name all samples at once.
    """
    if any(blend is None or any(one.samples is not None for one in blend.values()) for blend in blends):
        return False
    members = [member for info in core.adapters(model).values() for member in info.config.members]
    if any(isinstance(member, TokenConfig) or not member.adapter.per_sample for member in members):
        return False
    return not experts_in(model)
