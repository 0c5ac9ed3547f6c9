"""Levels: how strongly each adapter of one component acts now, layer by layer and row by row."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from studio.adapters.contract.mask import Mask
from studio.adapters.contract.schedule import When
from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.groups import Group, blends_of, grouped
from studio.adapters.hosting.regions import Regions
from studio.errors import DoesNotFit

__all__ = ["Levels"]


class Levels:
    """The blend of one component, as its layers ask for it.

    Args:
        component: its name in the pipeline, ``""`` for a model by itself.

    Attributes:
        strengths: adapter name -> strength, of those that are on.
        baked: the blend that is folded into the weights, or None; while there is one, nothing acts live.
        samples: the blend of each sample of a batch, in place of ``strengths``; None where all have the same.
        when: where in the denoising the model stands; None: nobody has said.
        rows: which sample every row of a batch belongs to; None where every row is a sample of its own.
        each: whether every layer has strengths of its own in any blend, so that what is compiled never asks elsewhere.
        flat: says of a path whether the layer there is called with the tokens of all rows as one row.
        acting: the names of all that are on for some sample, in the order of the model.
        masks: adapter -> the part of the picture that it acts in, of those that do not act in all of it.
        regions: knows where in the picture tokens are; None while no picture is drawn.
        factors: adapter -> path -> a factor of that layer's own, beside the strength; 1 where there is none.
        muted: adapter -> the layers where it does not act, whatever its strength.
        silent: the layers where no adapter acts.
        version: counts the changes, so that a layer knows when to plan anew. changed_by: the thread of the last one.

    After a change of ``factors``, ``muted`` or ``silent``, :meth:`touch_at` or :meth:`touch` makes it act.
    """

    def __init__(self, component: str) -> None:
        self.component = component
        self.strengths: dict[str, Strength] = {}
        self.baked: dict[str, Strength] | None = None
        self.samples: tuple[Mapping[str, Strength], ...] | None = None
        self.when: When | None = None
        self.rows: tuple[int, ...] | None = None
        self.each = False
        self.flat: Callable[[str], bool] = _never
        self.acting: tuple[str, ...] = ()
        self.masks: dict[str, Mask] = {}
        self.regions: Regions | None = None
        self.factors: dict[str, dict[str, float]] = {}
        self.muted: dict[str, set[str]] = {}
        self.silent: set[str] = set()
        self.version = 0
        self.changed_by = 0
        self.by_path = False  # whether strengths differ from layer to layer
        self._carriers: dict[str, tuple[tuple[str, ...], torch.device]] = {}
        self._shared: dict[tuple[str, ...], torch.device] = {}  # names that some layer has -> a device of such layers
        self._tensors: dict[tuple[str, ...], Tensor] = {}
        self._order: tuple[str, ...] = ()
        self._groups: tuple[Group, ...] | None = None
        self._known: dict[tuple[int, str], float | Tensor] = {}  # while they are the same for all layers

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets which adapters are on, and how strongly; the others are off."""
        self.strengths = dict(strengths)
        self.touch()

    def move(self, when: When | None) -> None:
        """Says where in the denoising the model stands; where a schedule then says another number, layers plan anew."""
        scheduled = {one for blend in self.blends() for one in blend.values() if one.schedule is not None}
        moved = any(one.then(self.when) != one.then(when) for one in scheduled)
        self.when = when
        if moved:
            self.touch()

    def drop(self, name: str) -> None:
        """Forgets all that is said about an adapter."""
        for table in (self.strengths, self.factors, self.muted):
            table.pop(name, None)

    def number(self, name: str, strength: Strength, path: str) -> float:
        """Returns what ``strength`` of an adapter comes to at a layer, without the factor per sample."""
        if path in self.silent or path in self.muted.get(name, ()):
            return 0.0
        factors = self.factors.get(name)
        number = strength.at(self.component, path)
        return number * factors[path] if factors and path in factors else number

    def groups(self) -> tuple[Group, ...] | None:
        """Returns the rows of a batch by their blends, or None where one blend holds for the rows of any batch."""
        return self._groups

    def number_in(self, group: Group, name: str, path: str) -> float:
        """Returns what the strength of an adapter comes to at a layer, for the rows of a group."""
        key = (id(group), name)
        number = None if self.by_path else self._known.get(key)
        if number is None:
            strength = group.strengths.get(name)
            number = self._known[key] = 0.0 if strength is None else self._now(name, strength, path)
        return float(number)

    def coefficient(self, name: str, path: str) -> float | Tensor:
        """Returns the strength of an adapter at a layer: a number, or one per row ``(rows,)``."""
        if self.baked is not None:
            return 0.0
        key = (0, name)
        known = None if self.by_path else self._known.get(key)
        if known is None:
            known = self._known[key] = self._coefficient(name, path)
        return known

    def _coefficient(self, name: str, path: str) -> float | Tensor:
        if self._groups is None:
            strength = self.strengths.get(name)
            return 0.0 if strength is None else self._now(name, strength, path)
        numbers = [self.number_in(group, name, path) for group in self._groups]
        if self.samples is not None and all(number == numbers[0] for number in numbers):
            return numbers[0]
        each = torch.empty(sum(len(group.rows) for group in self._groups), device="cpu")
        for group, number in zip(self._groups, numbers, strict=True):
            each[list(group.rows)] = number
        return each

    def _now(self, name: str, strength: Strength, path: str) -> float:
        """What a strength comes to at a layer at this moment of the denoising."""
        number, factor = self.number(name, strength, path), strength.then(self.when)
        if factor is None:
            raise DoesNotFit(
                f"the strength of {name!r} changes while a picture is denoised, and nobody said where in that this "
                "pass stands: draw with ImagePipeline, or call the model inside studio.at_progress(model, 0.3)"
            )
        return number * factor

    def within(self, name: str, path: str) -> float:
        """Returns the strength of an adapter at a layer in the part of the picture that it acts in.

        Raises:
            DoesNotFit: the rows of a batch have blends of their own.
        """
        number = self.coefficient(name, path)
        if self._groups is not None or not isinstance(number, float):
            raise DoesNotFit(
                f"the strength of {name!r} has a mask, and the samples of this batch have strengths of their own; draw "
                "them in batches of their own"
            )
        return number

    def check_uncompiled(self) -> None:
        """Checks that no adapter acts in a part of the picture.

        Raises:
            DoesNotFit: one does.
        """
        if self.masks:
            raise DoesNotFit("a model that is compiled has no regions; draw with masks on a base that is not compiled")

    # -- the same as tensors, which a compiled graph can read ----------------------------------------------------------

    def tensor(self, path: str, names: tuple[str, ...]) -> Tensor:
        """Returns the strengths of the adapters ``names`` at a layer, ``(names,)`` or ``(rows, names)``.

        The tensor stays the same one and is written into, so that changing a strength compiles nothing anew.
        """
        return self._tensors[(path, *names) if self.by_path else ("", *names)]

    def index(self, carriers: Mapping[str, tuple[tuple[str, ...], torch.device]], order: Sequence[str]) -> None:
        """Takes in which layers can ask for tensors.

        Args:
            carriers: path of a layer -> the names of its adapters, and the device that it computes on.
            order: the names of all adapters, in which their changes are summed up.
        """
        self._order = tuple(order)
        self._carriers, self._shared = dict(carriers), {}
        for names, device in carriers.values():
            self._shared.setdefault(("", *names), device)
        self.silent &= carriers.keys()
        self.touch()

    def touch(self) -> None:
        """Makes every layer plan anew at its next call, and brings the tensors up to date."""
        self._settle()
        blends, own = self.blends(), (self.silent, *self.factors.values(), *self.muted.values())
        self.by_path = self.each or any(own) or any(strength.blocks for one in blends for strength in one.values())
        self._count()  # after what is read by those who then plan anew
        wanted = self._shared
        if self.by_path:
            wanted = {**wanted, **{(path, *names): device for path, (names, device) in self._carriers.items()}}
        for key in self._tensors.keys() - wanted.keys():
            del self._tensors[key]
        for key, device in wanted.items():
            self._write(key, device)

    def blends(self) -> Sequence[Mapping[str, Strength]]:
        """Returns the blends that act: of each sample, or the one of all."""
        return (self.strengths,) if self.samples is None else self.samples

    def _settle(self) -> None:
        """Notes who acts, and which rows have which blend."""
        blends = self.blends()
        self.acting = tuple(name for name in self._order if any(name in one for one in blends))
        apart = blends_of(self.strengths) if self.samples is None else self.samples
        self._groups = None if apart is None or self.baked is not None else grouped(apart, self.rows)
        self.masks = {name: one.mask for blend in blends for name, one in blend.items() if one.mask is not None}
        self._known = {}

    def _count(self) -> None:
        self.version += 1
        self.changed_by = threading.get_ident()

    def touch_at(self, path: str) -> None:
        """The same after a change that concerns the layer at ``path`` alone."""
        if not self.by_path:
            self.touch()
        elif path in self._carriers:
            self._settle()
            self._count()
            names, device = self._carriers[path]
            self._write((path, *names), device)

    def _write(self, key: tuple[str, ...], device: torch.device) -> None:
        fresh, held = self._read(key), self._tensors.get(key)
        if held is not None and held.shape == fresh.shape:
            held.copy_(fresh)
        else:
            self._tensors[key] = fresh.to(device if held is None else held.device)

    def _read(self, key: tuple[str, ...]) -> Tensor:
        path, *names = key
        waits = {name for blend in self.blends() for name, one in blend.items() if one.then(self.when) is None}
        # no number is right for one that waits to be told where the denoising stands; this one cannot go unnoticed
        found = [math.nan if name in waits else self.coefficient(name, path) for name in names]
        rows = next((level.shape[0] for level in found if isinstance(level, Tensor)), None)
        if rows is None:
            return torch.tensor(found, device="cpu")
        spread = [level if isinstance(level, Tensor) else torch.full((rows,), level, device="cpu") for level in found]
        return torch.stack(spread, dim=1)


def _never(path: str) -> bool:
    return False
