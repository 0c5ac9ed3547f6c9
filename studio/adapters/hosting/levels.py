"""Levels: how strongly each adapter of one component acts now, layer by layer and row by row."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from studio.adapters.contract.strength import Strength
from studio.errors import DoesNotFit

__all__ = ["Levels"]


class Levels:
    """The blend of one component, as its layers ask for it.

    Args:
        component: its name in the pipeline, ``""`` for a model by itself.

    Attributes:
        strengths: adapter name -> strength, of those that are on.
        baked: the blend that is folded into the weights, or None; while there is one, nothing acts live.
        rows: which sample every row of a batch belongs to; None where every row is a sample of its own.
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
        self.rows: tuple[int, ...] | None = None
        self.factors: dict[str, dict[str, float]] = {}
        self.muted: dict[str, set[str]] = {}
        self.silent: set[str] = set()
        self.version = 0
        self.changed_by = 0
        self.by_path = False  # whether strengths differ from layer to layer
        self._carriers: dict[str, tuple[tuple[str, ...], torch.device]] = {}
        self._shared: dict[tuple[str, ...], torch.device] = {}  # names that some layer has -> a device of such layers
        self._tensors: dict[tuple[str, ...], Tensor] = {}

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets which adapters are on, and how strongly; the others are off."""
        self.strengths = dict(strengths)
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

    def coefficient(self, name: str, path: str) -> float | Tensor:
        """Returns the strength of an adapter at a layer: a number, or one per row ``(rows,)``.

        Raises:
            DoesNotFit: rows of samples that the strength does not have.
        """
        strength = None if self.baked is not None else self.strengths.get(name)
        if strength is None:
            return 0.0
        number = self.number(name, strength, path) if self.by_path else strength.at(self.component, path)
        samples = None if strength.samples is None else strength.per_sample()
        if samples is None or not number:
            return number
        if self.rows is not None:
            if max(self.rows) >= len(samples):
                raise DoesNotFit(
                    f"sample_rows names sample {max(self.rows)}; the strength of {name!r} has {len(samples)} samples"
                )
            samples = samples[list(self.rows)]
        return samples * number

    # -- the same as tensors, which a compiled graph can read ----------------------------------------------------------

    def tensor(self, path: str, names: tuple[str, ...]) -> Tensor:
        """Returns the strengths of the adapters ``names`` at a layer, ``(names,)`` or ``(rows, names)``.

        The tensor stays the same one and is written into, so that changing a strength compiles nothing anew.
        """
        return self._tensors[(path, *names) if self.by_path else ("", *names)]

    def index(self, carriers: Mapping[str, tuple[tuple[str, ...], torch.device]]) -> None:
        """Takes in which layers can ask for tensors.

        Args:
            carriers: path of a layer -> the names of its adapters, and the device that it computes on.
        """
        self._carriers, self._shared = dict(carriers), {}
        for names, device in carriers.values():
            self._shared.setdefault(("", *names), device)
        self.silent &= carriers.keys()
        self.touch()

    def touch(self) -> None:
        """Makes every layer plan anew at its next call, and brings the tensors up to date."""
        self._count()
        own = (self.silent, *self.factors.values(), *self.muted.values())
        self.by_path = any(own) or any(strength.blocks for strength in self.strengths.values())
        wanted = self._shared
        if self.by_path:
            wanted = {**wanted, **{(path, *names): device for path, (names, device) in self._carriers.items()}}
        for key in self._tensors.keys() - wanted.keys():
            del self._tensors[key]
        for key, device in wanted.items():
            self._write(key, device)

    def _count(self) -> None:
        self.version += 1
        self.changed_by = threading.get_ident()

    def touch_at(self, path: str) -> None:
        """The same after a change that concerns the layer at ``path`` alone."""
        if not self.by_path:
            self.touch()
        elif path in self._carriers:
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
        found = [self.coefficient(name, path) for name in names]
        rows = next((level.shape[0] for level in found if isinstance(level, Tensor)), None)
        if rows is None:
            return torch.tensor(found, device="cpu")
        spread = [level if isinstance(level, Tensor) else torch.full((rows,), level, device="cpu") for level in found]
        return torch.stack(spread, dim=1)
