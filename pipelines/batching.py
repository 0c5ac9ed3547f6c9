"""Which requests are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studio.families import Base
from studio.pipelines.acting import shared_blend
from studio.pipelines.prompting.spoken import spoken
from studio.pipelines.request import Request

__all__ = ["batches"]


def batches(base: Base, requests: Sequence[Request], rows: int) -> Iterator[list[int]]:
    """Yields indices of requests that may share a batch, at most ``rows`` at a time, in order of first appearance.

    Args:
        base: which draws them. requests: the pictures. rows: images per batch.

    Raises:
        BadConfig: brackets in a prompt that cannot be read. DoesNotFit: a prompt that the base cannot read whole.
    """

    groups: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        scheduler = request.scheduler if isinstance(request.scheduler, str) else id(request.scheduler)
        sizes = (request.width, request.height, request.steps, request.guidance, request.embedded)
        given = request.given
        start = None if given is None else (given.strength, given.mask is None)
        key = (shared_blend(base, request), *sizes, scheduler, start, spoken(base, request).lengths)
        groups.setdefault(key, []).append(index)
    for members in groups.values():
        for first in range(0, len(members), rows):
            yield members[first : first + rows]
