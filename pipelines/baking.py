"""Blends that are folded into the weights while their pictures are drawn, when the caller asks for it.

It never happens by itself: folded weights round otherwise than adapters that act live, in the last bits, and a picture
must not depend on how many others stand in its list. So it is asked for, and the picture's texts say that it was done.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from torch import nn

from studio.adapters import Strength, bake
from studio.adapters.contract.strength import as_strength
from studio.adapters.folded import Folded, folded_bytes, put_back, set_aside
from studio.adapters.hosting.attached import assemblies
from studio.adapters.hosting.turns import turn
from studio.adapters.overlap import without_change
from studio.adapters.sites.quantized import QuantizedSite
from studio.errors import BadConfig, DoesNotFit
from studio.families import Base
from studio.families.offloading import offloaded
from studio.limits import limit
from studio.pipelines.acting import blend_of
from studio.pipelines.metadata import strength_to_json
from studio.pipelines.request import Request, is_count

__all__ = ["PAYS", "Oven", "baking"]

PAYS: Final = 30
"""Calls of the denoiser from which ``bake="auto"`` folds a blend: measured to pay after 5 to 7 (docs/blends.md)."""


def baking(base: Base, requests: Sequence[Request], how: bool | str, rows: int) -> list[Request]:
    """Returns requests that say whether their blends are folded into the weights.

    Args:
        base: which draws. requests: the pictures. rows: images per batch.
        how: False: none; True: all; "auto": those that are constant and long enough, where that can be done cheaply.

    Raises:
        BadConfig: another word.
        DoesNotFit: all are to be, and one cannot: its strength differs by moment or place, its method changes no
            weight, or weights are offloaded.
    """
    if how is not True and how is not False and how != "auto":
        raise BadConfig(f"bake={how!r}: give True, False or 'auto'")
    standing = any(one.baked is not None for one in assemblies(base.pipe).values())
    if how is False or (standing and how == "auto"):
        return list(requests)
    if standing:
        raise DoesNotFit("bake=True, and a blend is baked into the weights already; call unbake first, or leave it out")
    groups: dict[str, list[int]] = {}
    blends = [_acting(base, request) for request in requests]
    for index, blend in enumerate(blends):
        groups.setdefault(repr(sorted(blend.items(), key=str)), []).append(index)
    made = list(requests)
    for places in groups.values():
        blend = blends[places[0]]
        reason = _against(base, blend) if blend else ""
        if how is True and reason:
            raise DoesNotFit(f"bake=True, and {reason}; leave it out to let the adapters act live")
        steps = [requests[index].steps for index in places]  # what is no number is refused when all are checked
        calls = sum(steps) / rows if is_count(rows) and all(map(is_count, steps)) else 0
        if blend and (how is True or (not reason and calls >= PAYS and _is_cheap(base, blend))):
            for index in places:
                made[index] = replace(requests[index], blend=blend, bake=True)
    return made


class Oven:
    """Folds the blends of batches into the weights, each once in a row, and holds what the last one was folded to.

    Args:
        base: which draws.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._held: tuple[str, Folded] | None = None

    @contextlib.contextmanager
    def baked(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Lasts while the blend of a batch is in the weights, if it is to be; the base has its bits back afterwards.

        Args:
            requests: the batch, whose pictures have one blend where that is to be folded.

        Yields:
            The requests as they are to be drawn meanwhile.

        Raises:
            DoesNotFit: a blend is baked already.
        """
        blend, pipe = requests[0].blend, self.base.pipe
        if not requests[0].bake or blend is None:
            yield list(requests)
            return
        key = json.dumps({name: strength_to_json(as_strength(one)) for name, one in blend.items()})
        with turn(pipe):
            if self._held is None or self._held[0] != key or not put_back(pipe, self._held[1]):
                self._held = None  # before others are made
                bake(pipe, blend)
            try:
                yield [replace(request, blend=None, bake=False) for request in requests]
            finally:
                self._held = key, set_aside(pipe)


def _acting(base: Base, request: Request) -> dict[str, Strength]:
    """The adapters that act on a picture, at their strengths."""
    blend: Mapping[str, Any] = blend_of(base, request) or {}
    read = {name: as_strength(one) for name, one in blend.items()}
    return {name: one for name, one in read.items() if one.value}


def _against(base: Base, blend: Mapping[str, Strength]) -> str:
    """Why a blend cannot be folded into the weights, as a part of a sentence; "" where it can."""
    for name, strength in blend.items():
        if not strength.constant:
            return f"the strength of {name!r} differs by moment or place"
    for name, method in without_change(base.pipe, blend).items():
        return f"{name!r} ({method}) changes no weight"
    for component, assembly in assemblies(base.pipe).items():
        if blend.keys() & assembly.records.keys() and offloaded(assembly.root):
            return f"the weights of {component} are offloaded"
    return ""


def _is_cheap(base: Base, blend: Mapping[str, Strength]) -> bool:
    """Whether weights are dense, nothing is compiled, and there is room for them twice."""
    for assembly in assemblies(base.pipe).values():
        if any(isinstance(mount.site, QuantizedSite) for mount in assembly.mounts.values()):
            return False
        if any(_is_compiled(module) for module in assembly.root.modules()):
            return False
    return folded_bytes(base.pipe, blend) <= limit("baked-bytes")


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
