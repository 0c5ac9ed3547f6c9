"""IA³: a gain for every output, or every input, of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Foreign, Way, peft_covers
from studio.adapters.contract.pattern import matches
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["IA3", "IA3Adapter"]


@METHODS.register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(AdapterConfig):
    r"""IA³ multiplies activations by learned gains: ``y' = gain · y``, or ``y' = W (gain_in · x) + b``.

    Attributes:
        feedforward: patterns of the targeted layers whose *inputs* are multiplied (the second layer of a feed-forward
            block in the paper); the outputs of all others are. Gains start at one.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (Liu et al., 2022),
        https://arxiv.org/abs/2205.05638

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.IA3(targets=("0",), feedforward=("0",))).parameters
        4
    """

    method = "ia3"
    feedforward: tuple[str, ...] = ()

    def check(self) -> None:
        patterns = (self.feedforward,) if isinstance(self.feedforward, str) else tuple(self.feedforward)
        object.__setattr__(self, "feedforward", patterns)


class IA3Adapter(Adapter):
    """IA³ on one site: ``gain`` ``(rows,)`` or, on a feed-forward site, ``gain_in`` (one per input channel)."""

    trained = ("gain", "gain_in")
    foreign = Foreign(
        peft_type="IA3",
        peft_tensors={"gain": "ia3_l", "gain_in": "ia3_l"},
        lycoris_tensors={"gain": "weight", "gain_in": "weight"},
        lycoris_algo="ia3",
        layouts={"gain": ("column|row", "vector|row"), "gain_in": ("row|row", "vector|row")},
        lycoris_minus={"gain": 1.0, "gain_in": 1.0},
        inputs=("feedforward", "on_input"),
        peft_way=Way(limit=lambda site: peft_covers(site, "Linear", "Conv1D", "Conv2d", "Conv3d")),
    )

    @classmethod
    def start(cls, site: Site, config: IA3, given: Given) -> dict[str, Tensor]:
        if any(matches(pattern, site.path) for pattern in config.feedforward):
            return {"gain_in": torch.ones(_channels(site))}
        return {"gain": torch.ones(site.rows)}

    def fit(self) -> None:
        if (self.tensor("gain") is None) == (self.tensor("gain_in") is None):
            raise DoesNotFit(f"IA3 at {self.site.path} needs either 'gain' or 'gain_in', one of the two")
        if self.tensor("gain") is not None:
            self.require("gain", (self.site.rows,))
        else:
            self.require("gain_in", (_channels(self.site),))

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        gain, gain_in = self._parameters.get("gain"), self._parameters.get("gain_in")
        matrix = self.site.matrix(weight)
        if gain is not None:
            change = (gain - 1)[:, None] * matrix
            return Delta(self.site.shaped(change), None if bias is None else (gain - 1) * bias)
        assert gain_in is not None
        return Delta(self.site.shaped(matrix * self._per_column(gain_in - 1)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gain, gain_in = self._parameters.get("gain"), self._parameters.get("gain_in")
        if gain is not None:
            return y * self.site.over_outputs((gain - 1).to(y.dtype))
        assert gain_in is not None
        if self.site.kind == "conv" and weight.shape[1] != gain_in.shape[0]:
            return super().change(x, y, weight, bias)
        scale = (gain_in - 1).to(x.dtype)
        return self.site.apply(x * self.site.over_outputs(scale), weight, None)

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        gain = self._parameters.get("gain")
        if gain is None or total is not y:
            return super().act(total, x, y, weight, bias, strength)
        return y * self.site.over_outputs((1 + strength * (gain - 1)).to(y.dtype))

    def _per_column(self, values: Tensor) -> Tensor:
        """Spreads one value per input channel over the columns (channel, kernel) of the weight's matrix."""
        inner = self.site.inner_shape
        spread = values.repeat_interleave(self.site.cols // inner[0])
        if spread.shape[0] == self.site.cols:
            return spread
        # grouped convolution: the rows of group g see the g-th share of the input channels
        groups = values.shape[0] // inner[0]
        return spread.view(groups, 1, -1).expand(-1, self.site.rows // groups, -1).reshape(self.site.rows, -1)


def _channels(site: Site) -> int:
    """Number of input channels that a feed-forward gain multiplies."""
    if site.kind == "embedding":
        raise UnsupportedLayer(
            f"IA3 cannot multiply the inputs of {site.path}: they are token ids; take it out of feedforward"
        )
    module: Any = site.module
    return int(module.in_channels) if site.kind == "conv" else site.inner_shape[0]


IA3.adapter = IA3Adapter
