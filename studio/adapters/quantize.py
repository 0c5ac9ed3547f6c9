"""quantize: a base whose Linear layers are kept on a grid of 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from studio.adapters.contract.starts import best_pair
from studio.adapters.hosting.attached import assemblies
from studio.adapters.sites.kinds import site_for
from studio.adapters.sites.quantized import Grid, GroupQuantizedLinear, to_grid
from studio.adapters.sites.read import module_at, read_weight
from studio.adapters.sites.site import GPT2Site, LinearSite, Site
from studio.adapters.targets.find import PRESETS, find_targets
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from studio.families import components

__all__ = ["QuantizeReport", "quantize"]


@dataclass(frozen=True)
class QuantizeReport:
    """What :func:`quantize` did.

    Attributes:
        sites: paths of the quantised layers. kept: layers that the preset names and that stay as they are.
        before, after: bytes of their weights.
        error: ``‖W − Q‖ / ‖W‖`` over all of them.
    """

    sites: tuple[str, ...]
    kept: tuple[str, ...]
    before: int
    after: int
    error: float

    def __str__(self) -> str:
        kept = f", {len(self.kept)} kept as they are" if self.kept else ""
        return (
            f"{len(self.sites)} layers quantised{kept}: {self.before:,} bytes -> {self.after:,}, "
            f"relative error {self.error:.4f}"
        )


@torch.no_grad()
def quantize(
    model: Any,
    *,
    bits: int = 4,
    group: int = 32,
    targets: str | Sequence[str] = "all-linear",
    exclude: Sequence[str] = (),
    rank: int = 0,
    iterations: int = 1,
) -> QuantizeReport:
    """Quantises Linear layers of a base, in place and for good; adapters act on them as on any other layer.

    With a ``rank`` the codes are chosen for a LoRA of that rank beside them (LoftQ): ``Q = quantised(W − pair)`` and
    ``pair = best of that rank for W − Q`` take turns. The pair itself is LoRA's start ``init="loftq"``::

        full = copy.deepcopy(model)
        studio.quantize(model, bits=2, rank=8, iterations=5)
        studio.attach(model, studio.LoRA(rank=8, init="loftq", targets="all-linear"), original=full)

    Such an adapter belongs to the base that this made, so keep that base (its ``state_dict``) or make it again with the
    same call.

    Args:
        model: the model or pipeline.
        bits: of a code: 2, 3, 4 or 8.
        group: columns that share a scale and a zero point; a divisor of each layer's inputs.
        targets, exclude: which layers, as in a method's config.
        rank: of the LoRA that the codes leave something to; 0 rounds each weight to the nearest code.
        iterations: turns with a ``rank``, of which the best one counts; the first rounds to the nearest codes.

    Raises:
        BadConfig: impossible bits, group, rank or iterations.
        NoTargets: a target that matches nothing.
        UnsupportedLayer: a layer that is no Linear.
        DoesNotFit: adapters are attached; weights are tied, or offloaded.

    References:
        LoftQ: LoRA-Fine-Tuning-Aware Quantization (Li et al., 2023), https://arxiv.org/abs/2310.08659

    Example:
        >>> import studio
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> studio.quantize(net, bits=8).sites
        ('0', '2')
    """
    if rank < 0 or iterations < 1 or (iterations > 1 and not rank):
        raise BadConfig(
            f"quantize(rank={rank}, iterations={iterations}): iterations is at least 1, and more than 1 need a rank"
        )
    if assemblies(model):
        raise DoesNotFit("adapters are attached to the model: quantise the base first, then attach")
    modules = components(model)
    preset = isinstance(targets, str) and targets in PRESETS
    made: dict[tuple[str, str], _Replacement] = {}
    kept: list[str] = []
    for component, paths in find_targets(modules, targets, exclude).items():
        for path in paths:
            name = f"{component}.{path}".strip(".")
            site = site_for(name, cast(nn.Module, module_at(modules[component], path)))
            if preset and not _is_plain(site, modules[component], path):
                kept.append(name)
                continue
            _check(site, modules[component], path, name, group)
            made[component, path] = _replacement(site, bits, group, rank, iterations)
    for (component, path), one in made.items():
        above, _, last = path.rpartition(".")
        cast(nn.Module, module_at(modules[component], above))._modules[last] = one.layer
    off, norm = sum(one.off for one in made.values()), sum(one.norm for one in made.values())
    return QuantizeReport(
        sites=tuple(f"{component}.{path}".strip(".") for component, path in made),
        kept=tuple(kept),
        before=sum(one.before for one in made.values()),
        after=sum(one.layer.codes.nbytes + one.layer.scales.nbytes + one.layer.zeros.nbytes for one in made.values()),
        error=(off / norm) ** 0.5 if norm else 0.0,
    )


@dataclass(frozen=True)
class _Replacement:
    """A quantised layer, the bytes of the weight that it stands for, ``‖W − Q‖²`` and ``‖W‖²``."""

    layer: GroupQuantizedLinear
    before: int
    off: float
    norm: float


def _replacement(site: Site, bits: int, group: int, rank: int, iterations: int) -> _Replacement:
    weight = read_weight(site)
    grid = _rounded(weight, bits, group, rank, iterations)
    layer = GroupQuantizedLinear.of(site.weight, cast("nn.Parameter | None", site.bias), bits=bits, grid=grid)
    off = float((weight - grid.weight()).square().sum())
    return _Replacement(layer.train(site.module.training), site.weight.nbytes, off, float(weight.square().sum()))


def _rounded(weight: torch.Tensor, bits: int, group: int, rank: int, iterations: int) -> Grid:
    """The weight on the grid; with a rank, what is left of it beside the best pair of that rank."""
    best = grid = to_grid(weight, bits, group)
    least = float("inf")
    for turn in range(iterations if iterations > 1 else 0):
        down, up = best_pair(weight - grid.weight(), rank)
        left = float((weight - grid.weight() - up @ down).square().sum())
        if left < least:  # a turn may also lead away: the ends of a grid are not free
            best, least = grid, left
        if turn + 1 < iterations:
            grid = to_grid(weight - up @ down, bits, group)
    return best


def _is_plain(site: Site, root: nn.Module, path: str) -> bool:
    """Whether the layer does nothing but multiply, and nobody else reads its weight."""
    above = module_at(root, path.rpartition(".")[0])
    return type(site) in (LinearSite, GPT2Site) and not isinstance(above, nn.MultiheadAttention)


def _check(site: Site, root: nn.Module, path: str, name: str, group: int) -> None:
    """Checks that a layer can be quantised."""
    if not _is_plain(site, root, path):
        raise UnsupportedLayer(
            f"{name or 'the model'} is a {type(site.module).__name__}, and what can be quantised are Linear layers "
            "whose weight nobody else reads: exclude it"
        )
    if not path:
        raise DoesNotFit("the model is one single layer, which cannot be replaced in place; put it into a Sequential")
    if group < 1 or site.cols % group:
        raise BadConfig(
            f"group={group} does not divide the {site.cols} inputs of {name}; exclude it, or use another group"
        )
    for other, module in root.named_modules():
        if module is not site.module and any(held is site.weight for held in module._parameters.values()):
            raise DoesNotFit(f"the weight of {name} is also that of {other}: exclude it, or untie the two first")
