"""Starts of a low-rank pair: drawn, taken out of the weight, or made from the data that the layer sees."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, TypeVar

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, Given
from studio.adapters.contract.calibration import Covariance
from studio.adapters.contract.ranked import RankedConfig, checked_rank
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit

__all__ = [
    "DATA_STARTS",
    "RANDOM_STARTS",
    "WEIGHT_STARTS",
    "grown_pair",
    "loftq",
    "minor_pair",
    "padded",
    "redistributed",
    "start_pair",
    "taken_pair",
]

Pair: TypeAlias = tuple[Tensor, Tensor]

C = TypeVar("C", bound=RankedConfig)

DAMPING: Final = 0.01
"""What CorDA adds to the diagonal of a covariance whose mean is one."""

OVERSAMPLED: Final = 8
"""Directions that a randomised SVD looks at beyond those that are asked for."""


# -- drawn -----------------------------------------------------------------------------------------------------------


def _kaiming(site: Site, rank: int, generator: torch.Generator) -> Pair:
    bound = 1 / math.sqrt(site.cols)
    down = torch.empty(rank, site.cols).uniform_(-bound, bound, generator=generator)
    return down, torch.zeros(site.rows, rank)


def _gaussian(site: Site, rank: int, generator: torch.Generator) -> Pair:
    down = torch.empty(rank, site.cols).normal_(std=1 / rank, generator=generator)
    return down, torch.zeros(site.rows, rank)


def _orthogonal(site: Site, rank: int, generator: torch.Generator) -> Pair:
    """Two factors that are both non-zero, with ``up @ down = 0`` because they use different orthogonal directions."""
    basis = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    half = rank // 2
    down = (torch.randn(site.cols, half, generator=generator) @ basis[:half]).t() / 10
    up = torch.randn(site.rows, rank - half, generator=generator) @ basis[half:] / 10
    return down, up


def _embedded(site: Site, rank: int, generator: torch.Generator) -> Pair:
    """An embedding's pair: each column of ``down`` is one token's, so that training some tokens moves no other."""
    return torch.zeros(rank, site.cols), torch.empty(site.rows, rank).normal_(generator=generator)


RANDOM_STARTS: Final = {"kaiming": _kaiming, "gaussian": _gaussian, "orthogonal": _orthogonal}
"""Starts that change nothing: ``up @ down = 0`` exactly or within rounding."""


def start_pair(site: Site, rank: int, init: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws ``down`` and ``up`` of a random start, in the shapes that files have; experts each draw their own.

    On an embedding "kaiming" and "gaussian" are zero ``down`` and normal ``up``, as in PEFT.
    """
    draw = _embedded if site.kind == "embedding" and init != "orthogonal" else RANDOM_STARTS[init]
    pairs = [draw(site, rank, generator) for _ in range(math.prod(site.lead))]
    down, up = (torch.stack(tensors) if site.lead else tensors[0] for tensors in zip(*pairs, strict=True))
    return {"down": down.reshape(*site.lead, rank, *site.inner_shape).contiguous(), "up": up.contiguous()}


# -- taken out of the weight -----------------------------------------------------------------------------------------

WEIGHT_STARTS: Final = ("pissa", "pissa-fast", "olora", "corda", "corda-kpm")
"""Starts that take the factors out of the weight; what they take is subtracted again by a second, frozen pair."""

DATA_STARTS: Final = ("eva", "corda", "corda-kpm")
"""Starts that need data."""


def taken_pair(site: Site, config: Any, rank: int, given: Given) -> Pair:
    """Takes a pair out of the weight: ``down`` ``(r, cols)`` and ``up`` ``(rows, r)``, scale not considered.

    Args:
        site: the layer. config: a config whose ``init`` is one of :data:`WEIGHT_STARTS`.
        rank: of the pair. given: the weight, the generator and, for CorDA, the covariance of the inputs.
    """
    weight = given.weight()
    if config.init == "pissa":
        return best_pair(weight, rank)
    if config.init == "pissa-fast":
        return _nearly_best_pair(weight, rank, 4 if config.iterations is None else config.iterations, given.generator)
    if config.init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    return _corda(site, weight, rank, given.inputs, config.init == "corda-kpm")


def minor_pair(site: Site, weight: Tensor, rank: int) -> Pair:
    """The last left singular directions of the weight as ``up``, and zero as ``down`` (MiCA).

    Args:
        site: the layer, for the message. weight: its weight ``(rows, cols)``. rank: of the pair.

    Raises:
        BadConfig: more directions than the weight has.
    """
    if rank > min(weight.shape):
        raise BadConfig(
            f"MiCA requires `r` <= min(in_features, out_features), and the rank is {rank} at {site.path} "
            f"({site.rows} x {site.cols}); use a rank of at most {min(weight.shape)}"
        )
    u = torch.linalg.svd(weight, full_matrices=False).U
    return torch.zeros(rank, site.cols).to(u), u[:, -rank:].contiguous()


def best_pair(matrix: Tensor, rank: int) -> Pair:
    """The best pair of rank ``rank``: ``U_r √S_r`` and ``√S_r V_rᵀ``."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def _nearly_best_pair(matrix: Tensor, rank: int, iterations: int, generator: torch.Generator) -> Pair:
    """Nearly the best pair, by subspace iteration from random directions (Halko et al., 2011, algorithm 4.4)."""
    width = min(rank + OVERSAMPLED, *matrix.shape)
    directions = torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ directions).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix.t() @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    down, up = best_pair(basis.t() @ matrix, rank)
    return down, basis @ up


def _corda(site: Site, weight: Tensor, rank: int, inputs: Covariance, lowest: bool) -> Pair:
    """Singular directions of ``W C``, brought back by ``C⁻¹``: those that the data uses most, or least.

    ``C`` is scaled to a mean diagonal of one, so that the size of the inputs does not matter; for white inputs this is
    PiSSA.
    """
    covariance = inputs.matrix().to(weight)
    level = covariance.diagonal().mean()
    if not level > 0 or not math.isfinite(level):
        raise DoesNotFit(f"the inputs of {site.path} while calibrating were all zero, or not finite")
    damped = covariance / level + DAMPING * torch.eye(site.cols).to(covariance)
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    part = slice(len(s) - rank, None) if lowest else slice(rank)
    u, s, vh = u[:, part], s[part], vh[part]
    vh = torch.linalg.solve(damped.double(), vh.double(), left=False).to(vh)
    root = s.sqrt()
    return root[:, None] * vh, u * root


def loftq(site: Site, weight: Tensor, original: Tensor, rank: int) -> Pair:
    """Finds the pair that best makes up for what quantisation took: ``up @ down ≈ original − weight``.

    Args:
        site: the layer, for the message.
        weight: the quantised weight ``(rows, cols)``.
        original: what it was before, ``(rows, cols)``.
        rank: of the pair.

    Raises:
        DoesNotFit: the two are not of one shape.
    """
    if original.shape != weight.shape:
        raise DoesNotFit(
            f"the original's layer {site.path} is {tuple(original.shape)}, the quantised one {tuple(weight.shape)}; "
            "give the model that was quantised as original"
        )
    return best_pair(original.to(weight) - weight, rank)


# -- ranks from data -------------------------------------------------------------------------------------------------


def redistributed(sites: Mapping[str, Site], config: C, given: Mapping[str, Given], rho: float) -> C:
    """Spends the budget ``Σ rank`` on the directions that explain most, over all layers together (EVA).

    A layer gets at most ``rho`` times its rank, and may get none: it is left out then. Its alpha follows its rank, so
    that ``alpha / rank`` stays what it was.

    Args:
        sites: path -> layer. config: the config as given. given: path -> measured inputs.
        rho: bound of a layer's rank, as a multiple of its rank in ``config``.

    Raises:
        DoesNotFit: the inputs vary in too few directions. BadConfig: two components have a layer of the same path.
    """
    paths = [site.path for site in sites.values()]
    double = next((path for path, count in Counter(paths).items() if count > 1), None)
    if double is not None:
        raise BadConfig(
            f"two components have a layer {double!r}, and ranks are named by the layer: attach one adapter to each "
            "component, or set rho=1 to keep all ranks"
        )
    shares: list[tuple[float, str]] = []
    budget = 0
    for whole, site in sites.items():
        rank, inputs = checked_rank(site, config), given[whole].inputs
        inputs.directions(rank, site.path)
        most = min(round(rank * rho), site.rows, site.cols)
        shares += [(share, site.path) for share in inputs.ratios()[:most].tolist()]
        budget += rank
    shares.sort(key=lambda share: -share[0])
    ranks = dict(Counter(path for _, path in shares[:budget]))
    scales = {
        path: config.alpha_at(path) * rank / config.rank_at(path) / config.divisor(rank) for path, rank in ranks.items()
    }
    left_out = [f"re:{re.escape(path)}" for path in paths if path not in ranks]
    return dataclasses.replace(config.regraded(ranks, scales), exclude=(*config.exclude, *left_out))


# -- more ranks for a pair that is there -----------------------------------------------------------------------------


def grown_pair(adapter: Adapter[C], rank: int, generator: torch.Generator) -> tuple[C, dict[str, Tensor]]:
    """Gives the pair of an adapter a higher rank; the new rows and columns are those of the usual start."""
    config, site = adapter.config, adapter.site
    tensors = adapter.tensors()
    wider = config.regraded({site.path: rank}, {site.path: config.scale_at(site.path)})
    most, inner = checked_rank(site, wider), tensors["down"].shape[1:]
    if inner == site.inner_shape:
        fresh = start_pair(site, most, "kaiming", generator)
    else:  # a factor that sees sums of inputs
        bound = 1 / math.sqrt(math.prod(inner))
        down = torch.empty(most, *inner, device="cpu").uniform_(-bound, bound, generator=generator)
        fresh = {"down": down, "up": torch.zeros(site.rows, most, device="cpu")}
    return wider, {**tensors, **{name: padded(tensors[name], fresh[name]) for name in ("down", "up")}}


def padded(old: Tensor, new: Tensor) -> Tensor:
    """Returns ``new`` with ``old`` in the place of its first entries along every axis, in the dtype of ``old``.

    Args:
        old: a tensor ``(n, ...)``.
        new: one with as many axes, none of them shorter, ``(N, ...)``.

    Example:
        >>> padded(torch.ones(1, 2), torch.zeros(2, 2)).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    result = new.detach().to(old, copy=True)
    result[tuple(slice(size) for size in old.shape)] = old.detach()
    return result
