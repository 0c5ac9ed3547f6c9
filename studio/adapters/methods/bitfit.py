"""BitFit: only biases are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Peft, Settings, Sites
from studio.adapters.sites.site import Site
from studio.errors import UnsupportedLayer

__all__ = ["BitFit", "BitFitAdapter"]


@METHODS.register("bitfit")
@dataclass(frozen=True, kw_only=True)
class BitFit(AdapterConfig):
    r"""BitFit trains biases and nothing else: ``y' = y + bias``, that is ``b' = b + bias``.

    A layer that was made without a bias gets one, as with ``LoRA(use_bias=True)``; a class of layer that cannot have
    one (an embedding, an RMSNorm) is refused.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models (Ben Zaken et al.,
          2021), https://arxiv.org/abs/2106.10199
        | BEFT: Bias-Efficient Fine-Tuning of Language Models (2025), https://arxiv.org/abs/2509.15974

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.BitFit(targets=("0",))).parameters
        6
    """

    method = "bitfit"
    targets: str | tuple[str, ...] = "all-linear"


def _limit(site: Site) -> str:
    return "" if site.kind == "linear" else "its BEFT covers Linear layers alone"


def _note(sites: Sites) -> str:
    bare = next((path for path, site in sites.items() if site.bias is None), None)
    if bare is None:
        return ""
    return (
        f"Detected that the base layer has no bias term ({bare}). In PEFT: Note you cannot merge the BEFT adapter into "
        "the base layer. Here merging gives the layer one."
    )


class BitFitAdapter(Adapter[BitFit]):
    """BitFit on one site: ``bias`` ``(rows,)``, which is added to the layer's own."""

    trained = ("bias",)
    kinds = ("linear", "conv", "conv1d-gpt2", "attention", "norm")
    needs = ("bias",)
    peft = Peft(
        type="BEFT",
        settings=Settings(name="BeftConfig", defaults={"init_weights": True}, chooses=("exclude_modules",), note=_note),
        tensors={"bias": "beft_bias"},
        layouts={"bias": "row|row"},
        limit=_limit,
    )

    @classmethod
    def start(cls, site: Site, config: BitFit, given: Given) -> dict[str, Tensor]:
        return {"bias": torch.zeros(site.rows)}

    def fit(self) -> None:
        if self.site.bias_name is None:
            raise UnsupportedLayer(
                f"{self.site.path} is a {type(self.site.module).__name__}, which cannot have a bias; exclude it"
            )
        self.require("bias", (self.site.rows,))

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        return Delta(None, cast(Tensor, self._parameters["bias"]).reshape(self.site.bias_shape))


BitFit.adapter = BitFitAdapter
