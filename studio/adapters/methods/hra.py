"""HRA: the weight is turned by a product of Householder reflections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, AdapterConfig, Given
from studio.adapters.contract.coverage import peft_pads, peft_uneven
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites
from studio.adapters.contract.rotation import Rotation
from studio.adapters.sites.site import Site
from studio.errors import BadConfig

__all__ = ["HRA", "HRAAdapter"]


@METHODS.register("hra")
@dataclass(frozen=True, kw_only=True)
class HRA(AdapterConfig):
    r"""HRA reflects the inputs of a layer ``rank`` times: ``W' = W H``, ``H = Π_i (I − 2 u_i u_iᵀ / ‖u_i‖²)``.

    The product is kept in its compact form ``H = I − U T Uᵀ`` with a triangular ``T`` ``(rank, rank)``, so that no
    matrix of the size of the weight is made. An embedding's outputs are reflected.

    Attributes:
        rank: number of reflections, at least 1. A new adapter needs an even number: its reflections start in pairs of
            equal ones, which undo each other.
        orthogonal: make the directions ``u_i`` orthogonal first (the paper's strict regularity): ``H = I − 2 Q Qᵀ``.
            Such an ``H`` is never the identity, so a new adapter changes the base's function at once, as in the paper.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation (Yuan et al.,
        2024), https://arxiv.org/abs/2405.17484

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> studio.attach(model, studio.HRA(rank=2, targets=("0",))).parameters
        16
    """

    method = "hra"
    rate = 5.0
    small: ClassVar[Mapping[str, Any]] = {"rank": 2}
    rank: int = 8
    orthogonal: bool = False

    def check(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")


def _stated(config: HRA, sites: Sites, layers: Layers) -> dict[str, Any]:
    """An odd rank has no start of pairs, about which PEFT warns even when it reads a file."""
    return {"init_weights": config.rank % 2 == 0}


class HRAAdapter(Rotation[HRA]):
    """HRA on one site: ``u`` ``(size, rank)``, a direction per column; ``size``: ``cols``, an embedding's ``rows``."""

    trained = ("u",)
    needs = ("u",)
    peft = Peft(
        type="HRA",
        settings=Settings(
            name="HRAConfig",
            defaults={"r": 8, "apply_GS": False, "init_weights": True, "bias": "none"},
            fields={"rank": "r", "orthogonal": "apply_GS"},
            state=_stated,
        ),
        tensors={"u": "hra_u"},
        covers=("Linear", "Conv2d"),
        limit=peft_uneven,
        differs=peft_pads,
    )

    @classmethod
    def start(cls, site: Site, config: HRA, given: Given) -> dict[str, Tensor]:
        rank, size = config.rank, site.rows if site.kind == "embedding" else site.cols
        if rank > size:
            raise BadConfig(
                f"HRA(rank={rank}) is larger than the {size} numbers that {site.path} reflects; use a rank of at most "
                f"{size}, or exclude the layer"
            )
        count = rank if config.orthogonal else rank // 2
        if not config.orthogonal and rank % 2:
            raise BadConfig(
                f"HRA(rank={rank}) cannot start as the identity: reflections undo each other in pairs; use rank="
                f"{rank + 1}, or rank={rank - 1}"
            )
        bound = 1 / math.sqrt(count)
        u = torch.empty(size, count).uniform_(-bound, bound, generator=given.generator)
        return {"u": u if config.orthogonal else u.repeat_interleave(2, dim=1)}

    def fit(self) -> None:
        self.__dict__["outputs"] = self.site.kind == "embedding"
        self.require("u", (self.size, None))

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        ranks = [tensors["u"].shape[1] for tensors in layers.values() if tensors["u"].dim() == 2]
        return {"rank": max(ranks, key=ranks.count)} if ranks else {}

    def _compact(self) -> tuple[Tensor, Tensor]:
        """``U`` ``(size, rank)`` with unit columns, and ``T`` of ``H = I − U T Uᵀ``."""
        u = cast(Tensor, self._parameters["u"])
        u = u / torch.linalg.vector_norm(u, dim=0)
        exact = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u  # solving needs more
        gram, eye = exact.t() @ exact, torch.eye(u.shape[1], dtype=exact.dtype, device=u.device)
        if self.config.orthogonal:
            return u, (2 * torch.linalg.solve(gram, eye)).to(u.dtype)
        return u, torch.linalg.solve_triangular(gram.triu(1) + eye / 2, eye, upper=True).to(u.dtype)

    def turned(self, v: Tensor, *, back: bool = False, drop: bool = False) -> Tensor:
        u, t = self._compact()
        t = t if back else t.t()  # W' = W H turns the inputs by Hᵀ
        return (v @ u.to(v.dtype)) @ (-t @ u.t()).to(v.dtype)

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.outputs:
            return super().change(x, y, weight, bias)
        # W H − W = −(W U) T Uᵀ is of rank r
        u, t = self._compact()
        matrix = self.site.matrix(weight)
        up = (matrix @ u.to(matrix.dtype)).to(u.dtype) @ -t
        return self.site.low_rank(x, u.t().reshape(-1, *self.site.inner_shape).to(y.dtype), up.to(y.dtype))

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        u = cast(Tensor, self._parameters["u"])
        paired = u.shape[1] % 2 == 0 and torch.equal(u[:, ::2], u[:, 1::2])
        return paired and not self.config.orthogonal


HRA.adapter = HRAAdapter
