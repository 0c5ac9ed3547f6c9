"""IA³: a gain for every output, or every input, of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.coverage import by_model
from studio.adapters.contract.foreign import Either, Layers, Lycoris, Peft, Settings, Sites, Tables
from studio.adapters.contract.pattern import matches
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer

__all__ = ["IA3", "IA3Adapter"]


@METHODS.register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(AdapterConfig):
    r"""IA³ multiplies activations by learned gains: ``y' = gain · y``, or ``y' = W (gain_in · x) + b``.

    Attributes:
        feedforward: patterns of the targeted layers whose *inputs* are multiplied (the second layer of a feed-forward
            block in the paper); the outputs of all others are. Gains start at one.
        with_bias: gains of outputs multiply the bias too. LyCORIS' and A1111's do not: ``y' = gain · (W x) + b``.

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
    rate = 3.0
    patterns: ClassVar[tuple[str, ...]] = ("feedforward",)
    feedforward: tuple[str, ...] = ()
    with_bias: bool = True


TARGETS: Final = by_model(
    {
        "k_proj v_proj down_proj": "llama mistral",
        "q_proj v_proj down_proj": "llama4 qwen2 qwen3 gemma gemma2 gemma3_text",
        "k_proj v_proj w2": "mixtral",
        "c_attn mlp.c_proj": "gpt2 gpt_bigcode",
        "k v wo": "t5",
        "k v wi_1": "mt5",
        "q_proj k_proj fc2": "opt",
        "q_proj v_proj fc2": "phi bart",
        "key value output.dense": "bert roberta",
        "query_key_value mlp.dense_4h_to_h": "bloom",
        "query_key_value dense_4h_to_h": "falcon gpt_neox",
    }
)


def _check_peft(config: Any) -> None:
    """Checks that PEFT's feed-forward layers are among its targets, where both are lists."""
    if config.feedforward_modules is not None and not isinstance(config.feedforward_modules, str):
        config.feedforward_modules = set(config.feedforward_modules)
    if isinstance(config.feedforward_modules, set) and isinstance(config.target_modules, set):
        stray = sorted(config.feedforward_modules - config.target_modules)
        if stray:
            raise BadConfig(f"`feedforward_modules` should be a subset of `target_modules`; {stray} are not targets")


def _biased(site: Site, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it matters if a bias is multiplied."""
    return "gain" in tensors and getattr(site.module, "bias", None) is not None


def _for_peft(config: IA3, sites: Sites, layers: Layers) -> Tables:
    for path, tensors in layers.items():
        if not config.with_bias and _biased(sites[path], tensors):
            raise DoesNotFit(
                f"PEFT's IA3 multiplies the bias of {path} too, and this one leaves it (with_bias=False); save with "
                "format='diffusers' or 'kohya'"
            )
    return {path: dict(tensors) for path, tensors in layers.items()}


def _for_lycoris(config: IA3, sites: Sites, layers: Layers) -> Tables:
    for path, tensors in layers.items():
        if config.with_bias and _biased(sites[path], tensors):
            raise DoesNotFit(
                f"LyCORIS' IA3 multiplies the weight of {path} and leaves its bias, and this adapter multiplies both; "
                "save with format='diffusers' or 'peft', or train with with_bias=False"
            )
    return {path: dict(tensors) for path, tensors in layers.items()}


class IA3Adapter(Adapter[IA3]):
    """IA³ on one site: ``gain`` ``(rows,)`` or, on a feed-forward site, ``gain_in`` (one per input channel)."""

    trained = ("gain", "gain_in")
    rowwise = ("gain",)
    either = Either(
        field="feedforward",
        setting="feedforward_modules",
        flag="on_input",
        usual=frozenset(
            "down_proj w2 mlp.c_proj wo fc2 output.dense mlp.dense_4h_to_h dense_4h_to_h".split(),
        ),
    )
    peft = Peft(
        type="IA3",
        settings=Settings(
            name="IA3Config",
            defaults={"feedforward_modules": None, "fan_in_fan_out": False, "init_ia3_weights": True},
            chooses=("exclude_modules",),
            init="init_ia3_weights",
            targets=TARGETS,
            check=_check_peft,
        ),
        tensors={"gain": "ia3_l", "gain_in": "ia3_l"},
        layouts={"gain": "column|row", "gain_in": "row|row"},
        covers=("Linear", "Conv1D", "Conv2d", "Conv3d"),
        store=_for_peft,
    )
    lycoris = Lycoris(
        algo="ia3",
        tensors={"gain": "weight", "gain_in": "weight"},
        layouts={"gain": "vector|row", "gain_in": "vector|row"},
        minus={"gain": 1.0, "gain_in": 1.0},
        fixed={"with_bias": False},
        store=_for_lycoris,
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
            return Delta(
                self.site.shaped(change), (gain - 1) * bias if bias is not None and self.config.with_bias else None
            )
        assert gain_in is not None
        return Delta(self.site.shaped(matrix * self._per_column(gain_in - 1)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gain, gain_in = self._parameters.get("gain"), self._parameters.get("gain_in")
        if gain is not None:
            return self._without(y, bias) * self.site.over_outputs((gain - 1).to(y.dtype))
        assert gain_in is not None
        if self.site.kind == "conv" and weight.shape[1] != gain_in.shape[0]:
            return super().change(x, y, weight, bias)
        scale = (gain_in - 1).to(x.dtype)
        return self.site.apply(x * self.site.over_outputs(scale), weight, None)

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        gain = self._parameters.get("gain")
        if gain is None or total is not y or self._without(y, bias) is not y:
            return super().act(total, x, y, weight, bias, strength)
        return y * self.site.over_outputs((1 + strength * (gain - 1)).to(y.dtype))

    def _without(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """The outputs that are multiplied."""
        return y if bias is None or self.config.with_bias else y - self.site.over_outputs(bias.to(y.dtype))

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
