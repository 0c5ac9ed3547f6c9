"""extract: the difference of two models as an adapter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import AdapterConfig, Full, LoRA
from studio.adapters.combining.pairs import Pair, rounded_to
from studio.adapters.contract.pattern import exactly
from studio.adapters.hosting.attached import whole_path
from studio.adapters.sites.kinds import site_for
from studio.adapters.targets.find import find_targets
from studio.errors import BadConfig, BadFile, DoesNotFit, NoEffect
from studio.families import components, open_base
from studio.files.loose import Loose, write_loose
from studio.given import given_path

__all__ = ["ExtractReport", "extract"]

_SPARE = 16  # ranks that a random start looks for beyond those that are asked for
_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction found.

    Attributes:
        file: the new adapter file. method: ``"lora"`` or ``"full"``. ranks: rank -> how many layers have it.
        error: ``‖D − D_k‖ / ‖D‖`` of all layers together. errors: path -> that of each layer.
        left: tensors that differ too and are in no layer that was looked at (norms, biases, ...).
    """

    file: Path
    method: str
    ranks: Mapping[int, int]
    error: float
    errors: Mapping[str, float] = field(repr=False)
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        ranks = ", ".join(f"rank {rank} ({count})" for rank, count in sorted(self.ranks.items()))
        worst = max(self.errors, key=lambda path: self.errors[path])
        lost = f"; it leaves out {self.error:.2%} ({self.errors[worst]:.2%} at {worst})" if self.ranks else ""
        beside = (
            f"; {len(self.left)} other tensors differ too and are not in it, {self.left[0]} is one" if self.left else ""
        )
        return f"{self.file}: {self.method} in {len(self.errors)} layers, {ranks or 'whole'}{lost}{beside}"


@torch.no_grad()
def extract(
    tuned: str | Path | Any,
    base: str | Path | Any,
    out: str | Path,
    *,
    rank: int | None = 32,
    targets: str | Sequence[str] = "all-linear",
    format: str | None = None,
    dtype: torch.dtype | str | None = None,
    name: str = "default",
) -> ExtractReport:
    """Writes what a tuned model differs in from its base as an adapter, layer by layer.

    Args:
        tuned: the tuned model: a name, a folder, a checkpoint of one file, a hub id, or a pipeline.
        base: what it was tuned from, likewise.
        out: the adapter file, which must not be there.
        rank: of each layer, at most; None: the whole difference, exactly (as large as the layers).
        targets: the layers to look at, as an adapter's targets; the text encoders' too where patterns name them.
        format: of the file; None: diffusers. dtype: what its tensors are stored in. name: what tags call it.

    Raises:
        UnknownName: neither is there. BadFile: one cannot be read, or the new file is there. BadConfig: a rank below 1.
        DoesNotFit: they have other layers. NoEffect: they do not differ in these layers. NoTargets: there are none.
    """
    place = _checked(rank, out)
    first, second = (open_base(one).pipe for one in (base, tuned))
    own, other = components(first), components(second)
    _check_alike(own, other)
    found = {part: paths for part, paths in find_targets(own, targets).items() if part in other}
    layers: dict[str, dict[str, Tensor]] = {}
    errors, ranks, lacking, whole = {}, {}, 0.0, 0.0
    for place_in, path, site, delta in _deltas(own, other, found):
        if rank is None:
            layers[place_in], errors[place_in] = {"weight": site.shaped(delta).float().contiguous()}, 0.0
            continue
        (down, up), left, size = _best(delta, min(rank, site.rows, site.cols))
        layers[place_in] = {"down": down.reshape(-1, *site.inner_shape).float(), "up": up.float()}
        ranks[path], errors[place_in] = len(down), math.sqrt(left / size)
        lacking, whole = lacking + left, whole + size
    if not layers:
        raise NoEffect("the two models do not differ in any of these layers, so there is nothing to extract")
    config = _config(layers, ranks)
    made = Loose(
        file=place, model=first, base=str(base), name=name, format="diffusers", config=config, layers=layers,
        facts=_origin(base, tuned),
    )  # fmt: skip
    return ExtractReport(
        file=write_loose(made, place, format=format, dtype=dtype), method=config.method, ranks=Counter(ranks.values()),
        error=math.sqrt(lacking / whole) if whole else 0.0, errors=errors, left=tuple(_left(own, other, layers)),
    )  # fmt: skip


def _origin(base: Any, tuned: Any) -> dict[str, str]:
    """What the file says it was made of, as far as the two have names."""
    found = {"base": _stated(base), "extracted": Path(_stated(tuned)).name}
    return {word: name for word, name in found.items() if name}


def _stated(model: str | Path | Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else ""


def _checked(rank: int | None, out: str | Path) -> Path:
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise BadConfig(f"rank={rank!r}: a rank is a whole number from 1 on")
    place = given_path(out)
    if place.exists():
        raise BadFile(f"{place} is there already; choose another name")
    return place


def _config(layers: Mapping[str, object], ranks: Mapping[str, int]) -> AdapterConfig:
    targets = (exactly(layers),)
    if not ranks:
        return Full(targets=targets, use_bias=False)
    return LoRA(targets=targets).regraded(ranks, dict.fromkeys(ranks, 1.0))


def _check_alike(own: Mapping[str, nn.Module], other: Mapping[str, nn.Module]) -> None:
    for part, module in own.items():
        if part not in other:
            raise DoesNotFit(f"the tuned model has no {part}, which the base has")
        mine, theirs = (dict(one.state_dict()) for one in (module, other[part]))
        odd = next((key for key in mine if key not in theirs or mine[key].shape != theirs[key].shape), None)
        if odd is not None:
            raise DoesNotFit(f"the two models have other layers: {part}.{odd} is not the same size in both")


def _deltas(
    own: Mapping[str, nn.Module], other: Mapping[str, nn.Module], found: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, Any, Tensor]]:
    """Every layer that differs: its path with the component in front and without, its site, ``ΔW`` as a matrix."""
    for part, paths in found.items():
        for path in paths:
            site = site_for(path, own[part].get_submodule(path))
            theirs = site_for(path, other[part].get_submodule(path))
            delta = site.matrix(theirs.weight.float()) - site.matrix(site.weight.float())
            if bool(delta.count_nonzero()):
                yield whole_path(part, path), path, site, delta


def _best(delta: Tensor, rank: int) -> tuple[Pair, float, float]:
    """The best pair of a rank, by an SVD or, of a large matrix, by one of a random sketch of it."""
    whole = float(delta.double().square().sum())
    if min(delta.shape) <= 4 * (rank + _SPARE):
        pair, lacking, _ = rounded_to(delta, rank)
        return pair, lacking, whole
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, values, v = torch.svd_lowrank(delta, q=rank + _SPARE, niter=_ROUNDS)
    root = values[:rank].clamp(min=0).sqrt()
    down, up = root[:, None] * v[:, :rank].mT, u[:, :rank] * root
    return (down.contiguous(), up.contiguous()), max(whole - float(values[:rank].double().square().sum()), 0.0), whole


def _left(own: Mapping[str, nn.Module], other: Mapping[str, nn.Module], layers: Mapping[str, object]) -> Iterator[str]:
    """Tensors that differ and are not the weight of a layer that was extracted."""
    for part, module in own.items():
        theirs = other[part].state_dict()
        for key, tensor in module.state_dict().items():
            path, _, leaf = whole_path(part, key).rpartition(".")
            if (leaf != "weight" or path not in layers) and not torch.equal(tensor, theirs[key]):
                yield whole_path(part, key)
