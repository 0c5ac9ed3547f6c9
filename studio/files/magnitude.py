"""How far an adapter moves every layer, from its file alone: ``‖ΔW‖`` at strength 1, by block and by kind of layer.

``ΔW`` of a pair is never multiplied out: ``‖s · up @ down‖² = s² tr(upᵀ up · down downᵀ)``. Where a change is made of
the base's own weight, and that is not at hand, what can be told without it is told, and said to be that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter
from studio.adapters.contract.change import change_of
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.gram import grams
from studio.errors import DoesNotFit
from studio.files.loose import Loose, adapters_of, read_loose
from studio.files.names import Names
from studio.files.places import KINDS, Kind, blocks_of, kind_of

__all__ = ["MEASURES", "Magnitude", "Magnitudes", "magnitudes"]

MEASURES: Final[Mapping[str, str]] = {
    "change": "‖ΔW‖ at strength 1",
    "pair": "‖ΔW‖ of its factor pair alone; its magnitude acts on the base's own weight, which is not at hand",
    "share": "‖ΔW‖ / ‖W‖ for a weight of random numbers; the base's own is not at hand",
    "tensors": "‖its tensors‖; it changes no weight",
}
"""What a norm is of: in words."""


@dataclass(frozen=True)
class Magnitude:
    """One layer.

    Attributes:
        path: where it is in the base. block: what its block is called. kind: which part of the block it is.
        norm: how far it is moved. measure: what that is of, a key of :data:`MEASURES`.
        weights: numbers in the layer's weight.
    """

    path: str
    block: str
    kind: Kind
    norm: float
    measure: str
    weights: int


@dataclass(frozen=True)
class Magnitudes:
    """All layers of an adapter, in the order of the base.

    Attributes:
        file: it was read from. method: of the adapter. base: on which it was read. layers: one by one.
    """

    file: Path
    method: str
    base: str
    layers: tuple[Magnitude, ...] = field(repr=False)

    @property
    def blocks(self) -> dict[str, float]:
        """Block -> the root of the sum of squares of its layers' norms, in the order of the base."""
        return _rooted((one.block, one.norm) for one in self.layers)

    @property
    def kinds(self) -> dict[Kind, float]:
        """Kind -> the same, in the order of :data:`~studio.files.places.KINDS`."""
        found = _rooted((one.kind, one.norm) for one in self.layers)
        return {kind: found[kind] for kind in KINDS if kind in found}

    @property
    def cells(self) -> dict[tuple[str, Kind], float]:
        """Block and kind -> the same."""
        return _rooted(((one.block, one.kind), one.norm) for one in self.layers)

    @property
    def whole(self) -> float:
        """The same of all layers."""
        return math.sqrt(sum(one.norm**2 for one in self.layers))

    @property
    def measures(self) -> tuple[str, ...]:
        """What the norms are of, each once."""
        return tuple(name for name in MEASURES if any(one.measure == name for one in self.layers))


def magnitudes(
    file: str | Path, *, family: str | None = None, base: str | Any | None = None, pickled: bool = False
) -> Magnitudes:
    """Reads an adapter file and tells how far it moves every layer.

    Args:
        file: see :func:`~studio.files.loose.read_loose`. family: see there. base: see there; where it is a base with
            its weights, every method's change is known. pickled: see there.

    Raises:
        BadFile: it cannot be read. DoesNotFit: it is for no base that is known. PartialLoad: a part of it fits no
            layer. Refused: NaN, or numbers that nothing can be computed with. BadConfig: an unknown family.

    Example:
        >>> import tempfile, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=1, targets=("0",)))
        >>> _ = studio.state(net)["0.up"].data.fill_(2.0), studio.state(net)["0.down"].data.fill_(0.5)
        >>> found = magnitudes(studio.save(net, Path(tempfile.mkdtemp()) / "dog.safetensors"), base=net)
        >>> found.whole  # 64 ones
        8.0
    """
    return _measured(read_loose(file, family=family, base=base, pickled=pickled))


@torch.no_grad()
def _measured(loose: Loose) -> Magnitudes:
    names = Names(loose.model)
    adapters = adapters_of(loose, names)
    blocks = blocks_of(names, (path for path in names.paths if path in loose.layers))
    norms = _norms(adapters, blocks)
    layers = (
        Magnitude(
            path, blocks[path], kind_of(names.paths[path][1]), *norms[path], math.prod(adapters[path].site.weight_shape)
        )
        for path in blocks
    )
    return Magnitudes(loose.file, loose.config.label, loose.base, tuple(layers))


def _norms(adapters: Mapping[str, Adapter], paths: Iterable[str]) -> dict[str, tuple[float, str]]:
    """Path -> norm, and what it is of."""
    pairs = {path: adapters[path] for path in paths if adapters[path].fused}
    squares = grams([(one.site, {0: one}) for one in pairs.values()], 1).reshape(-1).clamp(min=0).sqrt()
    found = {path: (float(norm), "change") for path, norm in zip(pairs, squares, strict=True)}
    return found | {path: _norm(adapters[path]) for path in paths if path not in found}


def _norm(adapter: Adapter) -> tuple[float, str]:
    """Of a method that is no pair."""
    try:
        return _length(change_of(adapter.site, adapter)), "change"
    except DoesNotFit:
        tensors = adapter.tensors()
    if not adapter.bakes:
        return _length(tensors.values()), "tensors"
    config: Any = adapter.config
    if {"down", "up"} <= tensors.keys() and isinstance(config, RankedConfig):
        down, up = tensors["down"].flatten(1).double(), tensors["up"].double()
        square = ((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0)
        return float(square.sqrt()) * abs(config.scale_at(adapter.site.path)), "pair"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(adapter.site.weight_shape, generator=generator)
    bias = None if adapter.site.bias is None else torch.zeros(adapter.site.bias.shape)
    return _length(adapter(type(adapter).delta, weight, bias)) / _length([weight]), "share"


def _length(tensors: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(one.double())) ** 2 for one in tensors if one is not None))


def _rooted(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    sums: dict[Any, float] = {}
    for key, norm in pairs:
        sums[key] = sums.get(key, 0.0) + norm**2
    return {key: math.sqrt(total) for key, total in sums.items()}
