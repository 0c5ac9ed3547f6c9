"""LoHa: a change of the weight that is the elementwise product of two low-rank matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Delta, Factors, Given
from studio.adapters.contract.coverage import peft_pads
from studio.adapters.contract.foreign import Lycoris, Peft, Settings
from studio.adapters.contract.lycoris import (
    LycorisAdapter,
    LycorisConfig,
    cores_for_peft,
    cores_of_peft,
    cores_stated,
    drawn,
    through_core,
)
from studio.adapters.contract.ranked import checked_rank
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["LoHa", "LoHaAdapter"]


@METHODS.register("loha")
@dataclass(frozen=True, kw_only=True)
class LoHa(LycorisConfig):
    r"""LoHa changes the weight by a Hadamard product: ``W' = W + s · (w1_a @ w1_b) ∘ (w2_a @ w2_b)``.

    The scale is ``s = alpha / rank``. The change has a rank of up to ``rank²``, from twice the numbers of a LoRA of
    rank ``rank``.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning (Hyeon-Woo et al., 2021),
          https://arxiv.org/abs/2108.06098
        | Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2023),
          https://arxiv.org/abs/2309.14859

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        >>> studio.attach(model, studio.LoHa(rank=2, targets=("0",))).parameters
        128
    """

    method = "loha"
    rate = 3.0


NAMES: Final = {
    "w1_a": "hada_w1_a",
    "w1_b": "hada_w1_b",
    "w2_a": "hada_w2_a",
    "w2_b": "hada_w2_b",
    "t1": "hada_t1",
    "t2": "hada_t2",
    "magnitude": "dora_scale",
}


class LoHaAdapter(LycorisAdapter[LoHa]):
    """LoHa on one site: ``w1_a`` ``(rows, r)``, ``w1_b`` ``(r, cols)``, and the same for ``w2``.

    With a core ``t1`` ``(r, r, *kernel)`` a product is ``Σ_ij t1[i,j] w1_a[i] w1_b[j]`` with ``w1_a`` ``(r, rows)`` and
    ``w1_b`` ``(r, in/groups)``.
    """

    trained = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2", "magnitude")
    rowwise = ("w1_a", "w2_a", "magnitude")
    needs = ("w1_a", "w1_b", "w2_a", "w2_b")
    ranks = ("w1_b",)
    peft = Peft(
        type="LOHA",
        additive=True,
        settings=Settings(
            name="LoHaConfig",
            prefix="hada_",
            defaults={
                "rank_pattern": {}, "alpha_pattern": {}, "r": 8, "alpha": 8, "rank_dropout": 0.0,
                "module_dropout": 0.0, "use_effective_conv2d": False, "init_weights": True,
            },
            fields={
                "rank": "r", "alpha": "alpha", "rank_dropout": "rank_dropout", "module_dropout": "module_dropout",
                "tucker": "use_effective_conv2d",
            },
            state=cores_stated,
        ),
        tensors=NAMES,
        covers=("Linear", "Conv1d", "Conv2d"),
        differs=peft_pads,
        read=cores_of_peft,
        store=cores_for_peft,
    )  # fmt: skip
    lycoris = Lycoris(algo="loha", tensors=NAMES)

    @classmethod
    def start(cls, site: Site, config: LoHa, given: Given) -> dict[str, Tensor]:
        magnitude = cls.own_magnitude(site, config, given)
        return cls._product(site, config, given) | magnitude

    @classmethod
    def _product(cls, site: Site, config: LoHa, given: Given) -> dict[str, Tensor]:
        rank, kernel = checked_rank(site, config), site.inner_shape[1:]
        filled = partial(drawn, given.generator)
        if not config.tucker or math.prod(kernel) == 1:
            tensors = {
                "w1_a": filled(site.rows, rank),
                "w1_b": filled(rank, site.cols),
                "w2_a": filled(site.rows, rank),
            }
            return {**tensors, "w2_b": torch.zeros(rank, site.cols)}
        inner = site.inner_shape[0]
        tensors = {"w1_a": filled(rank, site.rows), "w1_b": filled(rank, inner), "w2_a": filled(rank, site.rows)}
        cores = {"t1": filled(rank, rank, *kernel), "t2": filled(rank, rank, *kernel)}
        return {**tensors, "w2_b": torch.zeros(rank, inner), **cores}

    def fit(self) -> None:
        site, ranks = self.site, []
        for name in ("1", "2"):
            core = self.tensor(f"t{name}")
            if core is None:
                rank = self.require(f"w{name}_b", (None, site.cols)).shape[0]
                self.require(f"w{name}_a", (site.rows, rank))
            else:
                rank = self.require(f"w{name}_b", (None, site.inner_shape[0])).shape[0]
                self.require(f"w{name}_a", (None, site.rows))
                self.require(
                    f"t{name}", (self.require(f"w{name}_a", (None, None)).shape[0], rank, *site.inner_shape[1:])
                )
            ranks.append(self.require(f"w{name}_a", (None, None)).shape[0 if core is not None else 1])
        if ranks[0] != ranks[1]:
            raise DoesNotFit(f"LoHa at {site.path}: its two products have the ranks {ranks[0]} and {ranks[1]}")
        self.__dict__["scale"] = self.config.scale_at(site.path)
        # as a low-rank pair of rank r² the change costs less than as a matrix, unless r is large
        small = ranks[0] ** 2 * (site.rows + site.cols) < site.rows * site.cols
        self.check_magnitude()
        self.__dict__["fused"] = small and self.tensor("magnitude") is None

    scale: float

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns ``a1`` ``(rows, r)``, ``b1`` ``(r, cols)``, ``a2`` and ``b2``."""
        p: Any = self._parameters
        if p.get("t1") is None:
            return p["w1_a"], p["w1_b"], p["w2_a"], p["w2_b"]
        b1, b2 = (through_core(p[f"t{n}"], p[f"w{n}_b"]) for n in "12")
        return p["w1_a"].t(), b1, p["w2_a"].t(), b2

    def factors(self) -> Factors:
        a1, b1, a2, b2 = self._pairs()
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
        return Factors(down.reshape(-1, *self.site.inner_shape), up, self.scale)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        a1, b1, a2, b2 = self._pairs()
        return Delta(self.site.shaped(self.magnified(weight, _Hadamard.apply(a1 * self.scale, b1, a2, b2))))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.fused:
            down, up, scale, _ = self.factors()
            change = self.site.low_rank(x, down.to(y.dtype), (up * scale).to(y.dtype))
        else:
            change = super().change(x, y, weight, bias)
        return self.thinned(change)


class _Hadamard(torch.autograd.Function):
    """``(a1 @ b1) ∘ (a2 @ b2)``; both products are made anew for the gradients, so that none is kept."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = gradient * (a2 @ b2), gradient * (a1 @ b1)
        return first @ b1.t(), a1.t() @ first, second @ b2.t(), a2.t() @ second


LoHa.adapter = LoHaAdapter
