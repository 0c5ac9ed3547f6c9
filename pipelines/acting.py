"""The blends of a batch, each on the rows of its own picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studio.adapters import Strength, blended, blended_samples, current_blend
from studio.adapters.hosting.attached import assemblies
from studio.families import Base
from studio.pipelines.request import Request

__all__ = ["acting", "blend_of", "by_blend", "shared_blend"]


def blend_of(base: Base, request: Request) -> dict[str, Any] | None:
    """Returns the blend that acts on a picture; None where it is baked into the weights.

    Args:
        base: which draws. request: the picture.
    """
    if request.blend is not None:
        return dict(request.blend)
    baked = any(assembly.baked is not None for assembly in assemblies(base.pipe).values())
    return None if baked else current_blend(base.pipe)


@contextlib.contextmanager
def acting(base: Base, requests: Sequence[Request]) -> Iterator[None]:
    """Lasts while the blends of a batch act, that of each picture on its own rows.

    A batch of several rows is computed in that way though all have one blend: a picture is to have the same bits
    whatever its neighbours are. Blends with masks are that of a whole batch.

    Args:
        base: which draws. requests: one per row; under guidance the denoiser has the rows of their negative prompts
            before them.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked into the weights, or another task of this thread draws.
    """
    blends, family = [blend_of(base, request) for request in requests], base.family
    given = [blend for blend in blends if blend is not None]
    if len(given) < len(blends) or (len(blends) == 1 and requests[0].blend is None):
        with contextlib.nullcontext() if not given else blended(base.pipe, given[0]):
            yield
    elif len(blends) == 1 or _masked(given[0]):
        with blended(base.pipe, given[0]):
            yield
    else:
        samples = range(len(requests))
        rows = {family.denoiser: [*samples] if requests[0].guidance == 1 else [*samples, *samples]}
        flat = {family.denoiser: family.streams.is_flat}
        with blended_samples(base.pipe, given, rows=rows, flat=flat):
            yield


def by_blend(base: Base, requests: Sequence[Request]) -> list[list[int]]:
    """Returns the places of requests that have one blend, in the order in which blends first appear.

    Args:
        base: which draws. requests: the pictures.
    """
    found: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        found.setdefault(_key(blend_of(base, request)), []).append(index)
    return list(found.values())


def shared_blend(base: Base, request: Request) -> object:
    """Returns what pictures have alike that may share a batch, as far as their blends are concerned.

    Args:
        base: which draws. request: the picture.
    """
    blend = blend_of(base, request)
    if request.bake:
        return "baked", _key(blend)
    return _key(blend) if blend is None or _masked(blend) else True


def _key(blend: Mapping[str, Any] | None) -> object:
    return None if blend is None else tuple(sorted((name, repr(strength)) for name, strength in blend.items()))


def _masked(blend: Mapping[str, Any]) -> bool:
    return any(isinstance(strength, Strength) and strength.mask is not None for strength in blend.values())
