"""quantize: a base whose Linear layers are kept in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.starts import best_pair
from studio.adapters.hosting.attached import assemblies
from studio.adapters.sites.kinds import site_for
from studio.adapters.sites.read import module_at
from studio.adapters.sites.site import GPT2Site, LinearSite, Site
from studio.adapters.targets.find import PRESETS, find_targets
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from studio.families import components
from studio.quantization import Backend, OwnGrid, backend_called
from studio.quantization.layers import Quantized, quantize_layers, whole_error

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
    backend: str | None = None,
    *,
    bits: int | None = None,
    group: int | None = None,
    targets: str | Sequence[str] = "all-linear",
    exclude: Sequence[str] = (),
    rank: int = 0,
    iterations: int = 1,
) -> QuantizeReport:
    """Quantises Linear layers of a base, in place and for good; adapters act on them as on any other layer.

    With a ``rank`` the codes are chosen for a LoRA of that rank beside them (LoftQ): ``Q = quantised(W − pair)`` and
    ``pair = best of that rank for W − Q`` take turns. The pair itself is LoRA's start ``init="loftq"``::

        full = copy.deepcopy(model)
        studio.quantize(model, "nf4", rank=8, iterations=5)
        studio.attach(model, studio.LoRA(rank=8, init="loftq", targets="all-linear"), original=full)

    Such an adapter belongs to the base that this made, so keep that base (its ``state_dict``) or make it again with the
    same call.

    Args:
        model: the model or pipeline. Of a pipeline a preset takes the denoiser, and patterns what they name.
        backend: how: ``"nf4"``, ``"int8"``, ``"quanto-int4"``, ... (:data:`studio.quantization.BACKENDS`); None: the
            studio's own grid of ``bits`` and ``group``.
        bits: of the studio's grid: 2, 3, 4 (what None takes) or 8.
        group: columns that share a scale and a zero point of it, 32 where None; a divisor of each layer's inputs.
        targets, exclude: which layers, as in a method's config.
        rank: of the LoRA that the codes leave something to; 0 rounds each weight to the nearest code.
        iterations: turns with a ``rank``, of which the best one counts; the first rounds to the nearest codes.

    Raises:
        UnknownName: no such backend. MissingPackage: its package is not installed.
        BadConfig: impossible bits, group, rank or iterations, or a shape that does not divide.
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
    chosen = _chosen(backend, bits, group)
    if rank < 0 or iterations < 1 or (iterations > 1 and not rank):
        raise BadConfig(
            f"quantize(rank={rank}, iterations={iterations}): iterations is at least 1, and more than 1 need a rank"
        )
    if assemblies(model):
        raise DoesNotFit("adapters are attached to the model: quantise the base first, then attach")
    modules = components(model)
    preset = isinstance(targets, str) and targets in PRESETS
    taken: dict[str, dict[str, nn.Module]] = {}
    kept: list[str] = []
    for component, paths in find_targets(modules, targets, exclude).items():
        taken[component] = {}
        for path in paths:
            name = f"{component}.{path}".strip(".")
            site = site_for(name, cast(nn.Module, module_at(modules[component], path)))
            if preset and not _is_plain(site, modules[component], path):
                kept.append(name)
                continue
            _check(site, modules[component], path, name, chosen)
            taken[component][path] = site.module
    rounded = _leaving(chosen, rank, iterations) if iterations > 1 else None
    done = {part: quantize_layers(modules[part], layers, chosen, rounded) for part, layers in taken.items()}
    return _report(done, kept)


def _chosen(backend: str | None, bits: int | None, group: int | None) -> Backend:
    if backend is None:
        return OwnGrid(4 if bits is None else bits, 32 if group is None else group)
    if bits is not None or group is not None:
        raise BadConfig(f"bits and group are of the studio's own grid; leave them out with {backend!r}")
    return backend_called(backend)


def _report(done: dict[str, list[Quantized]], kept: Sequence[str]) -> QuantizeReport:
    every = [one for part in done.values() for one in part]
    return QuantizeReport(
        sites=tuple(f"{component}.{one.path}".strip(".") for component, part in done.items() for one in part),
        kept=tuple(kept),
        before=sum(one.before for one in every),
        after=sum(one.after for one in every),
        error=whole_error(every),
    )


def _leaving(backend: Backend, rank: int, iterations: int) -> Callable[[Tensor], Tensor]:
    """What of a weight is packed, so that the best pair of that rank beside it leaves least."""

    def rounded(weight: Tensor) -> Tensor:
        exact, least = weight.float(), float("inf")
        best = given = exact
        for _ in range(iterations):
            left = exact - backend.packing.unpacked(backend.layer(given.to(weight.dtype), None)).float()
            down, up = best_pair(left, rank)
            off = float((left - up @ down).square().sum())
            if off < least:  # a turn may also lead away: the ends of a grid are not free
                best, least = given, off
            given = exact - up @ down
        return best.to(weight.dtype)

    return rounded


def _is_plain(site: Site, root: nn.Module, path: str) -> bool:
    """Whether the layer does nothing but multiply, and nobody else reads its weight."""
    above = module_at(root, path.rpartition(".")[0])
    return type(site) in (LinearSite, GPT2Site) and not isinstance(above, nn.MultiheadAttention)


def _check(site: Site, root: nn.Module, path: str, name: str, backend: Backend) -> None:
    """Checks that a layer can be quantised."""
    if not _is_plain(site, root, path):
        raise UnsupportedLayer(
            f"{name or 'the model'} is a {type(site.module).__name__}, and what can be quantised are Linear layers "
            "whose weight nobody else reads: exclude it"
        )
    if not path:
        raise DoesNotFit("the model is one single layer, which cannot be replaced in place; put it into a Sequential")
    backend.check(name, site.rows, site.cols)
    for other, module in root.named_modules():
        if module is not site.module and any(held is site.weight for held in module._parameters.values()):
            raise DoesNotFit(f"the weight of {name} is also that of {other}: exclude it, or untie the two first")
