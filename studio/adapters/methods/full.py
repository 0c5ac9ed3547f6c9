"""Full: the change of weight and bias itself, of any kind: full fine-tuning, or the difference of two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Lycoris, Peft
from studio.adapters.sites.site import LAYERS, Site
from studio.errors import DoesNotFit

__all__ = ["Full", "FullAdapter"]


@METHODS.register("full")
@dataclass(frozen=True, kw_only=True)
class Full(AdapterConfig):
    r"""Full changes the weight by a tensor of its own size: ``W' = W + ΔW``, ``b' = b + Δb``.

    It is full fine-tuning of the layers that it names, kept as a difference: as large as the layers, and exact whatever
    the change is. Combinations of adapters that are no factor pairs are of this kind.

    Attributes:
        use_bias: train the change of the bias too, where the layer has one.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2023),
          https://arxiv.org/abs/2309.14859, where it is "native fine-tuning"

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> studio.attach(model, studio.Full(targets=("0",))).parameters
        15
    """

    method = "full"
    use_bias: bool = True


class FullAdapter(Adapter[Full]):
    """The change of one site: ``weight`` as the layer's weight, ``bias`` ``(rows,)`` as its bias."""

    trained = ("weight", "bias")
    rowwise = ("weight", "bias")
    kinds = ("norm", *LAYERS)
    # PEFT has no such method; LyCORIS has, and calls the tensors of a norm otherwise
    peft = Peft(tensors={"weight": "full_weight", "bias": "full_bias"})
    lycoris = Lycoris(
        algo="full",
        tensors={"weight": "diff", "bias": "diff_b"},
        norm={"weight": "w_norm", "bias": "b_norm"},
    )

    @classmethod
    def start(cls, site: Site, config: Full, given: Given) -> dict[str, Tensor]:
        bias = config.use_bias and site.bias is not None
        tensors = {"weight": torch.zeros(site.weight_shape)}
        return {**tensors, "bias": torch.zeros(site.bias_shape)} if bias else tensors

    def fit(self) -> None:
        weight, bias = self.tensor("weight"), self.tensor("bias")
        if weight is None and bias is None:
            raise DoesNotFit(f"Full at {self.site.path} has neither a weight nor a bias to change")
        if weight is not None:
            self.require("weight", self.site.weight_shape)
        if bias is not None:
            self.require("bias", self.site.bias_shape)

    @classmethod
    def shown(cls, layers: Any) -> dict[str, Any]:
        return {"use_bias": any("bias" in tensors for tensors in layers.values())}

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        return Delta(self.tensor("weight"), self.tensor("bias"))


Full.adapter = FullAdapter
