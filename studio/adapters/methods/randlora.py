"""RandLoRA: a sum of frozen random products, weighed by trained diagonals, whose rank is full."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Delta, Given
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites
from studio.adapters.contract.projection import ProjectedAdapter, ProjectionConfig
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit

__all__ = ["RandLoRA", "RandLoRAAdapter"]

DISTRIBUTIONS: Final = ("uniform", "sparse", "very sparse")


@METHODS.register("randlora")
@dataclass(frozen=True, kw_only=True)
class RandLoRA(ProjectionConfig):
    r"""RandLoRA weighs random products: ``W' = W + s · Σ_n B_n diag(lambda_n) A diag(gamma_n)``, ``s = alpha / rank``.

    ``A`` ``(rank, smaller side)`` and ``B_n`` ``(larger side, rank)`` are drawn once for the model and stay frozen;
    there are ``bases = ceil(smaller side / rank)`` of the ``B_n``, so that the change can have full rank. Where a layer
    has more columns than rows, the products are transposed. It trains ``bases · (rank + smaller side)`` numbers: the
    smaller the rank, the more.

    Attributes:
        rank: inner size of the products, >= 1.
        alpha: what the change is multiplied by, over the rank; None: 20 times the rank.
        dropout: probability in [0, 1) with which inputs are dropped while training.
        distribution: of the entries of ``A`` and ``B``: "uniform", "sparse" (−1, 0, 1 with 1/6, 2/3, 1/6), or "very
            sparse" (1 and −1 with ``1 / (2 √smaller side)`` each).
        key: seed of ``A`` and ``B``, PEFT's ``projection_prng_key``.
        save_projection: whether files hold ``A`` and ``B``. Without them a file is small, and they are drawn anew from
            the key at loading, which another version of torch could do differently.
        checksums: what ``A`` and ``B`` of a file without them have to be; saving fills it in.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        RandLoRA: Full-rank parameter-efficient fine-tuning of large models (Albert et al., 2025),
        https://arxiv.org/abs/2502.00987

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.RandLoRA(rank=2, targets=("0",))).parameters
        12
    """

    method = "randlora"
    rate = 0.3
    small: ClassVar[Mapping[str, Any]] = {"rank": 3}
    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    distribution: str = "uniform"
    key: int = 0
    save_projection: bool = True
    checksums: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")
        self.require(self.alpha is None or (finite(self.alpha) and self.alpha != 0), "alpha", "a number that is not 0")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")
        self.require(self.distribution in DISTRIBUTIONS, "distribution", f"one of {', '.join(DISTRIBUTIONS)}")

    @property
    def scale(self) -> float:
        """``s``."""
        return 20.0 if self.alpha is None else self.alpha / self.rank


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    very, sparse = fields.get("very_sparse"), fields.get("sparse")
    return {
        "alpha": float(fields.get("randlora_alpha", 640)),
        "distribution": "very sparse" if very else "sparse" if sparse else "uniform",
    }


def _stated(config: RandLoRA, sites: Sites, layers: Layers) -> dict[str, Any]:
    return {
        "randlora_alpha": config.scale * config.rank,
        "sparse": config.distribution == "sparse",
        "very_sparse": config.distribution == "very sparse",
    }


class RandLoRAAdapter(ProjectedAdapter[RandLoRA]):
    """RandLoRA on one site: ``lambdas`` ``(rank, bases)``, ``gammas`` ``(bases, smaller side)``.

    One of the layers owns ``A`` ``(rank, 1, smaller side)`` and ``B`` ``(larger side, bases, rank)``, of the largest
    layers. PEFT, and so the files, pair row ``p`` of the flattened ``diag(lambda_n) A diag(gamma_n)``, which counts the
    ranks first, with column ``p`` of the flattened ``B``, which counts the bases first: as ``B`` is random, that is a
    choice of its order.
    """

    trained = ("lambdas", "gammas")
    needs = ("lambdas", "gammas")
    ranks = ("lambdas",)
    peft = Peft(
        type="RANDLORA",
        additive=True,
        settings=Settings(
            name="RandLoraConfig",
            defaults={
                "r": 32, "projection_prng_key": 0, "save_projection": True, "sparse": False, "very_sparse": False,
                "randlora_dropout": 0.0, "fan_in_fan_out": False, "randlora_alpha": 640, "bias": "none",
                "init_weights": True,
            },
            chooses=("layers_to_transform", "layers_pattern"),
            fields={
                "rank": "r", "dropout": "randlora_dropout", "key": "projection_prng_key",
                "save_projection": "save_projection",
            },
            reads=("randlora_alpha", "sparse", "very_sparse"),
            config=_config_of_peft,
            state=_stated,
        ),
        tensors={"lambdas": "randlora_lambda", "gammas": "randlora_gamma"},
        shared={"A": "randlora_A", "B": "randlora_B"},
        repeated=True,
        covers=("Linear", "Conv1D"),
    )  # fmt: skip

    @classmethod
    def start(cls, site: Site, config: RandLoRA, given: Given) -> dict[str, Tensor]:
        width = min(site.rows, site.cols)
        bases = -(-width // config.rank)
        return {
            "lambdas": torch.zeros(config.rank, bases),
            "gammas": torch.full((bases, width), 1 / max(bases, width)),
        }

    @classmethod
    def projection(cls, config: RandLoRA, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Draws ``A`` and ``B`` for all of the layers as PEFT does, in bfloat16 where they are uniform."""
        most = max(site.rows for site in sites), max(site.cols for site in sites)
        width, length, rank = min(most), max(most), config.rank
        bases, generator = -(-width // rank), torch.Generator().manual_seed(config.key)
        if config.distribution == "uniform":
            a = _uniform((rank, 1, width), generator)
            b = torch.cat([_uniform((length, 1, rank), generator) for _ in range(bases)], dim=1)
            return {"A": (a / a.std()).float(), "B": (b / b.std()).float()}
        edge = 1 / (2 * (3 if config.distribution == "sparse" else math.sqrt(width)))
        made = {}
        for name, shape in (("A", (rank, 1, width)), ("B", (length, bases, rank))):
            drawn = torch.rand(shape, generator=generator)
            signs = (drawn > 1 - edge).float() - (drawn < edge).float()
            made[name] = signs / signs.std()
        return made

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {"rank": next(iter(layers.values()))["lambdas"].shape[0]}

    def fit(self) -> None:
        super().fit()
        rank, bases = self.require("lambdas", (None, None)).shape
        width = min(self.site.rows, self.site.cols)
        self.require("lambdas", (rank, -(-width // rank)))
        self.require("gammas", (bases, width))

    def check_pair(self) -> None:
        rank, bases = self.require("lambdas", (None, None)).shape
        a, b = self.owner.require("A", (rank, 1, None)), self.owner.require("B", (None, None, rank))
        rows, cols = self.site.rows, self.site.cols
        if a.shape[2] < min(rows, cols) or b.shape[0] < max(rows, cols) or b.shape[1] < bases:
            raise DoesNotFit(
                f"RandLoRA at {self.site.path}: its layer ({rows} x {cols}) needs more than the shared A "
                f"{tuple(a.shape)} and B {tuple(b.shape)} have"
            )

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """``down`` ``(rank · bases, cols)`` and ``up`` ``(rows, rank · bases)``, without the scale."""
        lambdas, gammas = (cast(Tensor, self._parameters[name]) for name in self.trained)
        (a, b), site = self.pair(), self.site
        small = lambdas[:, :, None] * a[:, :, : gammas.shape[1]].to(lambdas) * gammas[None]
        large = b[: max(site.rows, site.cols), : gammas.shape[0]].to(lambdas)
        narrow, wide = small.flatten(0, 1), large.flatten(1)
        return (narrow, wide) if site.cols <= site.rows else (wide.t(), narrow.t())

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up = self._factors()
        return Delta(self.site.shaped((up @ down) * self.config.scale))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up = self._factors()
        down, scaled = down.reshape(-1, *self.site.inner_shape).to(y.dtype), (up * self.config.scale).to(y.dtype)
        return self.site.low_rank(self.dropped(x), down, scaled)

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return not all(bool(cast(Tensor, self._parameters[name]).count_nonzero()) for name in self.trained)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """He's uniform distribution of a leaky rectifier with slope √5, which is 1 / √fan-in to both sides."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)


RandLoRA.adapter = RandLoRAAdapter
