"""VeRA: one frozen random pair for all layers, and two trained vectors for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Delta, Given
from studio.adapters.contract.foreign import Layers, Peft, Settings
from studio.adapters.contract.projection import ProjectedAdapter, ProjectionConfig
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit

__all__ = ["VeRA", "VeRAAdapter"]


@METHODS.register("vera")
@dataclass(frozen=True, kw_only=True)
class VeRA(ProjectionConfig):
    r"""VeRA scales the rows of a random pair: ``W' = W + diag(lambda_b) B diag(lambda_d) A``.

    ``A`` ``(rank, most cols)`` and ``B`` ``(most rows, rank)`` are drawn once for the model and stay frozen; a layer
    uses the first ``cols`` columns of ``A`` and the first ``rows`` rows of ``B``. It trains ``rows + rank`` numbers.

    Attributes:
        rank: inner size of the pair, >= 1; it may exceed the layers.
        dropout: probability in [0, 1) with which inputs are dropped while training.
        d_initial: what ``lambda_d`` starts with; ``lambda_b`` starts at zero.
        key: seed of ``A`` and ``B``; the same key gives the matrices of PEFT's ``projection_prng_key``, bit for bit.
        save_projection: whether files hold ``A`` and ``B``. Without them a file is small, and they are drawn anew from
            the key at loading, which another version of torch could do differently.
        checksums: what ``A`` and ``B`` of a file without them have to be; saving fills it in.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., 2023), https://arxiv.org/abs/2310.11454

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 4))
        >>> studio.attach(model, studio.VeRA(rank=3, targets=("0", "1"))).parameters
        16
    """

    method = "vera"
    rate = 5.0
    small: ClassVar[Mapping[str, Any]] = {"rank": 3}
    rank: int = 256
    dropout: float = 0.0
    d_initial: float = 0.1
    key: int = 0
    save_projection: bool = True
    checksums: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")
        self.require(finite(self.d_initial), "d_initial", "a finite number")


class VeRAAdapter(ProjectedAdapter[VeRA]):
    """VeRA on one site: ``lambda_b`` ``(rows,)``, ``lambda_d`` ``(rank,)``; one of the layers owns ``A`` and ``B``."""

    trained = ("lambda_b", "lambda_d")
    needs = ("lambda_b", "lambda_d")
    ranks = ("lambda_d",)
    peft = Peft(
        type="VERA",
        additive=True,
        settings=Settings(
            name="VeraConfig",
            prefix="vera_lambda_",
            defaults={
                "r": 256, "projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0, "d_initial": 0.1,
                "fan_in_fan_out": False, "bias": "none", "init_weights": True,
            },
            fields={
                "rank": "r", "dropout": "vera_dropout", "d_initial": "d_initial", "key": "projection_prng_key",
                "save_projection": "save_projection",
            },
        ),
        tensors={"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"},
        shared={"A": "vera_A", "B": "vera_B"},
        covers=("Linear", "Conv1D"),
    )  # fmt: skip

    @classmethod
    def start(cls, site: Site, config: VeRA, given: Given) -> dict[str, Tensor]:
        return {"lambda_b": torch.zeros(site.rows), "lambda_d": torch.full((config.rank,), config.d_initial)}

    @classmethod
    def projection(cls, config: VeRA, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Draws ``A`` and ``B`` for the widest of the layers, as PEFT does: He's uniform distribution, ``A`` first."""
        generator = torch.Generator().manual_seed(config.key)
        shapes = {
            "A": (config.rank, max(site.cols for site in sites)),
            "B": (max(site.rows for site in sites), config.rank),
        }
        made = {}
        for name, shape in shapes.items():
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
            made[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return made

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {"rank": next(iter(layers.values()))["lambda_d"].shape[0]}

    def fit(self) -> None:
        self.require("lambda_b", (self.site.rows,))
        self.require("lambda_d", (None,))
        super().fit()

    def check_pair(self) -> None:
        rank = self.require("lambda_d", (None,)).shape[0]
        down, up = self.owner.require("A", (rank, None)), self.owner.require("B", (None, rank))
        if down.shape[1] < self.site.cols or up.shape[0] < self.site.rows:
            raise DoesNotFit(
                f"VeRA at {self.site.path}: its layer ({self.site.rows} x {self.site.cols}) needs more than the shared "
                f"A {tuple(down.shape)} and B {tuple(up.shape)} have"
            )

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def _cut(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``A`` ``(rank, cols)`` and ``B`` ``(rows, rank)`` of this layer."""
        down, up = self.pair()
        device = self._vector("lambda_d").device
        return down[:, : self.site.cols].to(device, dtype), up[: self.site.rows].to(device, dtype)

    def _vector(self, name: str) -> Tensor:
        return cast(Tensor, self._parameters[name])

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        lambda_b, lambda_d = self._vector("lambda_b"), self._vector("lambda_d")
        down, up = self._cut(lambda_d.dtype)
        return Delta(self.site.shaped((lambda_b[:, None] * up) @ (lambda_d[:, None] * down)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # the vectors multiply activations, not the frozen matrices: their gradients then cost no matrix product
        site, dtype = self.site, y.dtype
        down, up = self._cut(dtype)
        h = site.lower(self.dropped(x), down.reshape(-1, *site.inner_shape))
        h = h * site.over_rank(self._vector("lambda_d").to(dtype), h)
        return site.raised(h, up) * site.over_outputs(self._vector("lambda_b").to(dtype))


VeRA.adapter = VeRAAdapter
