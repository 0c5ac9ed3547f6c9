"""Delta-LoRA: a low-rank change, and in the weight itself the sum of what the pair has moved by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, Delta, Given
from studio.adapters.contract.foreign import Peft
from studio.adapters.contract.ranked import RankedConfig, checked_rank
from studio.adapters.contract.starts import start_pair
from studio.adapters.sites.site import Site
from studio.config import finite

__all__ = ["DeltaLoRA", "DeltaLoRAAdapter"]


@METHODS.register("deltalora")
@dataclass(frozen=True, kw_only=True)
class DeltaLoRA(RankedConfig):
    r"""Delta-LoRA adds a low-rank pair and moves the weight along with it: ``W' = W + accumulated + s · up @ down``.

    After every optimizer step from the ``delta_start``-th on, ``accumulated += λ s (up⁺ @ down⁺ − up @ down)``, the
    change of the product in that step; so the weight is trained without gradients or moments of its own. In the paper W
    itself is overwritten. Here W stays and the sum is a tensor of the adapter, as large as the weight: an adapter of a
    4096 × 4096 layer is 64 MiB in fp32 (rank 8 alone: 0.25 MiB), and every forward pass multiplies by that tensor too.
    Baked into the weights it costs nothing. There is no dropout, with which the product would be another one than the
    one that moved. The training loop drives this; a loop of one's own calls
    :func:`studio.adapters.training.on_step`.

    Attributes:
        delta_ratio: λ, how far the weight moves for what the pair has moved by.
        delta_start: how many steps the pair trains alone.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Delta-LoRA: Fine-Tuning High-Rank Parameters with the Delta of Low-Rank Matrices (Zi et al., 2023),
        https://arxiv.org/abs/2309.02411

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> studio.attach(model, studio.DeltaLoRA(rank=2, targets=("0",))).parameters
        16
    """

    method = "deltalora"
    delta_ratio: float = 2.0
    delta_start: int = 0

    def check(self) -> None:
        super().check()
        self.require(finite(self.delta_ratio), "delta_ratio", "a finite number")
        whole = isinstance(self.delta_start, int) and not isinstance(self.delta_start, bool)
        self.require(whole and self.delta_start >= 0, "delta_start", "a whole number, at least 0")


class DeltaLoRAAdapter(Adapter[DeltaLoRA]):
    """Delta-LoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``accumulated`` as the weight."""

    trained = ("down", "up")
    frozen = ("accumulated",)
    driven = ("accumulated",)
    scratch = ("down_before", "up_before")
    needs = ("down", "up", "accumulated")
    ranks = ("down",)
    # PEFT has no such method. Names of its own: a program that knew only the pair would load half of the change
    peft = Peft(tensors={"down": "delta_down", "up": "delta_up", "accumulated": "delta_sum"})

    @classmethod
    def start(cls, site: Site, config: DeltaLoRA, given: Given) -> dict[str, Tensor]:
        pair = start_pair(site, checked_rank(site, config), "kaiming", given.generator)
        return {**pair, "accumulated": torch.zeros(site.weight_shape)}

    def fit(self) -> None:
        rank = self.require("down", (None, *self.site.inner_shape)).shape[0]
        self.require("up", (self.site.rows, rank))
        self.require("accumulated", self.site.weight_shape)
        self.__dict__["scale"] = self.config.scale_at(self.site.path)
        if self.trainable:
            for name in ("down", "up"):
                self.keep(f"{name}_before", self._tensor(name).detach().clone())

    scale: float

    def _tensor(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        assert tensor is not None
        return tensor

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up = self._tensor("down"), self._tensor("up")
        return Delta(self._tensor("accumulated") + self.site.shaped((up * self.scale) @ down.flatten(1)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up, accumulated = (self._tensor(name).to(y.dtype) for name in ("down", "up", "accumulated"))
        moved = self.site.apply(x, accumulated, None)
        return self.site.add_raised(moved, self.site.lower(x, down), up * self.scale, own=True)

    @classmethod
    def on_step(cls, adapters: Mapping[str, Any], step: int, steps: int) -> None:
        for adapter in adapters.values():
            adapter.follow(moving=step > adapter.config.delta_start)

    @torch.no_grad()
    def follow(self, *, moving: bool) -> None:
        """Adds the change of the product since the last call to what is accumulated, where ``moving``."""
        config = self.config
        down, up, old_down, old_up = (self._tensor(n) for n in ("down", "up", "down_before", "up_before"))
        if moving:  # up⁺ down⁺ − up down = (up⁺ − up) down⁺ + up (down⁺ − down), which cancels nothing
            left, right = torch.cat([up - old_up, old_up], dim=1), torch.cat([down, down - old_down])
            total = self.site.matrix(self._tensor("accumulated"))
            total.addmm_(left, right.flatten(1), alpha=config.delta_ratio * self.scale)
        old_down.copy_(down)
        old_up.copy_(up)


DeltaLoRA.adapter = DeltaLoRAAdapter
