"""LN tuning: the weight and bias of the norms are trained themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Peft, Settings
from studio.adapters.sites.site import LAYERS, Site
from studio.errors import DoesNotFit

__all__ = ["LNTuning", "LNTuningAdapter"]


@METHODS.register("lntuning")
@dataclass(frozen=True, kw_only=True)
class LNTuning(AdapterConfig):
    r"""LN tuning trains the weight and bias of norms: ``y = n(x) ⊙ weight' + bias'``.

    On a layer that is no norm it does the same, which is full fine-tuning of that layer: as many numbers as the layer
    has.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning (Zhao et al., 2023),
        https://arxiv.org/abs/2312.11420

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> studio.attach(model, studio.LNTuning(targets=("1",))).parameters
        8
    """

    method = "lntuning"
    targets: str | tuple[str, ...] = "norms"


def _limit(site: Site) -> str:
    return "it copies a MultiheadAttention as a whole" if site.kind == "attention" else ""


class LNTuningAdapter(Adapter[LNTuning]):
    """LN tuning on one site: ``weight`` and, where the layer has one, ``bias``, as they replace the layer's own."""

    trained = ("weight", "bias")
    kinds = ("norm", *LAYERS)
    needs = ("weight",)
    peft = Peft(
        type="LN_TUNING",
        settings=Settings(name="LNTuningConfig", chooses=("exclude_modules",)),
        tensors={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"},
        limit=_limit,
    )

    @classmethod
    def start(cls, site: Site, config: LNTuning, given: Given) -> dict[str, Tensor]:
        tensors = {"weight": site.shaped(given.weight()).clone()}
        bias = given.bias()
        return tensors if bias is None else {**tensors, "bias": bias.clone()}

    def fit(self) -> None:
        self.require("weight", self.site.weight_shape)
        if self.site.bias is not None:
            self.require("bias", self.site.bias_shape)
        elif self.tensor("bias") is not None:
            raise DoesNotFit(f"LNTuning at {self.site.path} has a bias, and the layer has none that it could replace")

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        tuned: dict[str, Any] = self._parameters
        return Delta(tuned["weight"] - weight, None if bias is None else tuned["bias"] - bias)


LNTuning.adapter = LNTuningAdapter
