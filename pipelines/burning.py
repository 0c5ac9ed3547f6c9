"""Blends that are weighed before they are drawn with: held to their strongest adapter, or remarked on."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import Tensor

from studio.adapters import Strength, current_blend
from studio.adapters.contract.strength import as_strength
from studio.adapters.hosting.attached import assemblies
from studio.adapters.interference import warnings_of
from studio.adapters.normalized import normalized
from studio.adapters.overlap import by_block, joined, overlaps
from studio.families import Base

__all__ = ["Holder", "burn_remarks"]

_FEW: Final = 8  # steps; under that weighing a blend would cost more than a hundredth of the first picture
_MOST: Final = 64  # blends of a pipeline whose remarks are remembered


class Holder:
    """Holds blends to the strongest of their adapters (:func:`studio.normalized`), each once.

    Args:
        base: on which the adapters are.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._held: dict[str, dict[str, Strength]] = {}

    def held(self, blend: Mapping[str, Strength] | None) -> dict[str, Strength]:
        """Returns a blend with its strengths lowered where its adapters add up.

        Args:
            blend: the blend; None: the current one.

        Raises:
            DoesNotFit: its strengths differ by moment or place, or a blend is baked into the weights.
        """
        pipe = self.base.pipe
        acting = current_blend(pipe) if blend is None else blend
        if repr(acting) not in self._held:
            self._held[repr(acting)] = normalized(pipe, acting)
        return self._held[repr(acting)]


def burn_remarks(base: Base, blends: Iterable[Mapping[str, Any] | None], *, steps: int) -> list[str]:
    """Returns what is predicted of blends from the weights of their adapters: that they burn, or undo each other.

    Growth from 1.3 on and cosines down to -0.35 are remarked on (:mod:`studio.adapters.interference`). Nothing is said
    of what would take long to tell: of few steps, of methods that are no factor pairs, of strengths that change while a
    picture is denoised; nor of adapters that are being trained.

    Args:
        base: which draws. blends: of the pictures; None: the current one. steps: denoising steps of each.
    """
    if steps < _FEW:
        return []
    each = {repr(blend): blend for blend in blends}
    return list(dict.fromkeys(remark for blend in each.values() for remark in _remarks(base, blend)))


def _remarks(base: Base, blend: Mapping[str, Any] | None) -> list[str]:
    given = current_blend(base.pipe) if blend is None else {name: as_strength(one) for name, one in blend.items()}
    acting = {name: one for name, one in given.items() if one.value}
    now = _frozen_pairs(base, acting) if len(acting) > 1 and all(one.constant for one in acting.values()) else None
    if now is None:
        return []
    known, key = _KNOWN.setdefault(base.pipe, OrderedDict()), repr(acting)
    if key not in known or not known[key].holds(now):
        sites = list(overlaps(base.pipe, acting, base=False, exact=False))
        found = warnings_of(joined(sites, ""), by_block(sites)) if sites else []
        known[key] = _Weighed(now, found)
        if len(known) > _MOST:
            known.popitem(last=False)
    return known[key].said


class _Weighed:
    """What was said of a blend, and the tensors that it was said of."""

    def __init__(self, tensors: list[Tensor], said: list[str]) -> None:
        self.said = said
        self._of = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]

    def holds(self, tensors: list[Tensor]) -> bool:
        """Says whether the adapters still have these tensors, unchanged."""
        return len(tensors) == len(self._of) and all(
            tensor is known() and _version(tensor) == version
            for tensor, (known, version) in zip(tensors, self._of, strict=True)
        )


_KNOWN: Final[weakref.WeakKeyDictionary[Any, OrderedDict[str, _Weighed]]] = weakref.WeakKeyDictionary()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _frozen_pairs(base: Base, names: Iterable[str]) -> list[Tensor] | None:
    """The tensors of adapters that are frozen factor pairs, live on their layers; None where one is not."""
    found: list[Tensor] = []
    for assembly in assemblies(base.pipe).values():
        if assembly.baked is not None:
            return None
        for _, adapter in (one for name in names if name in assembly.records for one in assembly.adapters(name)):
            held = [*adapter._parameters.values(), *adapter._buffers.values()]
            if not adapter.fused or any(tensor is not None and tensor.requires_grad for tensor in held):
                return None
            found += [tensor for tensor in held if tensor is not None]
    return found
