"""GLoRA: a low-rank change of the weight, and one of what the weight is multiplied with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, Delta, Given
from studio.adapters.contract.foreign import Lycoris, Peft
from studio.adapters.contract.ranked import RankedConfig, checked_rank
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["GLoRA", "GLoRAAdapter"]


@METHODS.register("glora")
@dataclass(frozen=True, kw_only=True)
class GLoRA(RankedConfig):
    r"""GLoRA changes the weight by ``W' = W + s · (W a1 a2 + b1 b2)``, with ``s = alpha / rank``.

    ``a1 a2`` mixes the channels that the layer reads, ``b1 b2`` is a LoRA. The change depends on the weight, so two
    of them on one layer are summed as changes of the same base.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning (Chavan et al., 2023),
          https://arxiv.org/abs/2306.07967
        | Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2023),
          https://arxiv.org/abs/2309.14859, whose form it has

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> studio.attach(model, studio.GLoRA(rank=2, targets=("0",))).parameters
        56
    """

    method = "glora"


NAMES = {"a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight"}


def _current(site: Site, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The parts of LyCORIS' first form, ``W a2 a1 + b2 b1``, under the names of the present one."""
    if not set(NAMES.values()) <= parts.keys():
        return parts
    a1, a2, b1, b2 = (parts[name].flatten(1) if parts[name].dim() > 1 else parts[name] for name in NAMES.values())
    if any(one.dim() != 2 for one in (a1, a2, b1, b2)):
        return parts
    now = len(b2) == b1.shape[1] == a1.shape[1] == len(a2)
    then = b2.shape[1] == len(b1) == len(a1) == a2.shape[1]
    if not then or (now and len(b2) <= b2.shape[1]):  # on a square layer both may be read: a rank is the smaller one
        return parts
    swapped = {"a1.weight": "a2.weight", "a2.weight": "a1.weight", "b1.weight": "b2.weight", "b2.weight": "b1.weight"}
    return {part: parts[swapped.get(part, part)] for part in parts}


class GLoRAAdapter(Adapter[GLoRA]):
    """GLoRA on one site: ``a1`` ``(in, r)``, ``a2`` ``(r, in)``, ``b1`` ``(rows, r)``, ``b2`` ``(r, *inner_shape)``."""

    trained = ("a1", "a2", "b1", "b2")
    rowwise = ("b1",)
    kinds = ("linear", "conv", "conv1d-gpt2", "attention")
    needs = ("a1", "a2", "b1", "b2")
    ranks = ("b2",)
    peft = Peft(tensors={"a1": "glora_a1", "a2": "glora_a2", "b1": "glora_b1", "b2": "glora_b2"})
    lycoris = Lycoris(
        algo="glora",
        tensors=NAMES,
        layouts={"a1": "spread", "a2": "spread", "b1": "spread", "b2": "inner"},
        older=_current,
    )

    @classmethod
    def start(cls, site: Site, config: GLoRA, given: Given) -> dict[str, Tensor]:
        rank, inner = checked_rank(site, config), site.inner_shape[0]
        filled = {name: torch.empty(size, rank) for name, size in (("a1", inner), ("b1", site.rows))}
        for tensor in filled.values():
            torch.nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=given.generator)
        return {**filled, "a2": torch.zeros(rank, inner), "b2": torch.zeros(rank, *site.inner_shape)}

    def fit(self) -> None:
        site = self.site
        rank = self.require("b2", (None, *site.inner_shape)).shape[0]
        self.require("b1", (site.rows, rank))
        mixed = self.require("a2", (None, site.inner_shape[0])).shape[0]
        self.require("a1", (site.inner_shape[0], mixed))
        if mixed != rank:
            raise DoesNotFit(f"GLoRA at {site.path}: its two products have the ranks {mixed} and {rank}")
        self.__dict__["scale"] = self.config.scale_at(site.path)

    scale: float

    def _read(self, weight: Tensor) -> Tensor:
        """``W a1``, ``(rows, r, *kernel)``."""
        p: Any = self._parameters
        inner = self.site.matrix(weight).reshape(self.site.rows, *self.site.inner_shape)
        return torch.einsum("oi...,ir->or...", inner, p["a1"].to(inner.dtype))

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        p: Any = self._parameters
        mixed = torch.einsum("or...,ri->oi...", self._read(weight), p["a2"].to(weight.dtype))
        added = p["b1"] @ p["b2"].flatten(1)
        return Delta(self.site.shaped((mixed.flatten(1) + added) * self.scale))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if math.prod(self.site.inner_shape[1:]) > 1:
            return super().change(x, y, weight, bias)
        p: Any = self._parameters
        read = self._read(weight.to(y.dtype)).flatten(1)
        up = torch.cat([read, p["b1"].to(y.dtype)], dim=1) * self.scale
        down = torch.cat([p["a2"], p["b2"].flatten(1)]).to(y.dtype)
        return self.site.low_rank(x, down.reshape(-1, *self.site.inner_shape), up)


GLoRA.adapter = GLoRAAdapter
