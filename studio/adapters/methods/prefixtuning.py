"""Prefix tuning, also called P-tuning v2: keys and values before those of every attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Given
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites, Tables
from studio.adapters.sites.language import CachedAttention, ModelSite
from studio.adapters.sites.site import Site
from studio.adapters.tokens.contract import PrefixAdapter, TokenConfig
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["PrefixTuning", "PrefixTuningAdapter"]

PLACES = ("decoder", "cross", "encoder")
NETWORK = ("embedding", "weight0", "bias0", "weight1", "bias1")


@METHODS.register("prefixtuning")
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(TokenConfig):
    r"""Prefix tuning gives every attention learned keys and values before its own: ``y = softmax(q [Kₚ; K]ᵀ) [Vₚ; V]``.

    A strength ``s`` multiplies the weight that the prefix gets in the softmax (scores ``+ log s``). In a decoder or an
    encoder by itself positions go on behind the prefix, as in PEFT; inside an encoder that has a decoder they stay.

    Attributes:
        hidden: None trains the keys and values themselves (P-tuning v2); a number makes them by a network
            ``W₁ tanh(W₀ e + b₀) + b₁`` of that hidden size from one embedding per virtual token (prefix tuning), which
            is saved too, so that training can go on.
        init: "random" (normal with deviation 1, as PEFT's) or "zero".
        places: which attentions get a prefix: of the "decoder", of the "encoder", the "cross"-attention of a decoder to
            its encoder; None: all that the model has. PEFT has none but the first in a model that has all.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang, 2021),
          https://arxiv.org/abs/2101.00190
        | P-Tuning v2 (Liu et al., 2021), https://arxiv.org/abs/2110.07602

    Example:
        >>> import studio
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16,
        ...     num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2))
        >>> studio.attach(model, studio.PrefixTuning(tokens=5)).parameters  # 5 tokens, 3 layers, key and value of 2 · 4
        240
    """

    method = "prefixtuning"
    rate = 10.0
    hidden: int | None = None
    init: str = "random"
    places: tuple[str, ...] | None = None

    def check(self) -> None:
        super().check()
        self.require(self.hidden is None or self.hidden >= 1, "hidden", "at least 1, or None")
        self.require(self.init in ("random", "zero"), "init", "'random' or 'zero'")
        if self.places is not None:
            self.require(
                bool(self.places) and set(self.places) <= set(PLACES), "places", f"some of {', '.join(PLACES)}"
            )


def chosen_attentions(site: ModelSite, config: PrefixTuning) -> list[CachedAttention]:
    """Returns the attentions that get a prefix.

    Raises:
        UnsupportedLayer: the model has none of a place that is named.
    """
    found = site.attentions()
    has = {attention.place for attention in found}
    missing = [place for place in config.places or () if place not in has]
    if missing or not found:
        raise UnsupportedLayer(
            f"{type(site.module).__name__} has no {missing[0] if missing else ''} attention that takes a prefix; "
            f"it has: {', '.join(sorted(has)) or 'none'}"
        )
    return [attention for attention in found if config.places is None or attention.place in config.places]


# -- PEFT --------------------------------------------------------------------------------------------------------------
#
# The prefix of a decoder that has an encoder is doubled there, and its l-th layer reads the parts 4l and 4l + 1,
# counted round: half of what is stored is never read.


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"places": ("decoder",)} if fields["is_encoder_decoder"] else {}


def _new(config: Any, sites: Sites) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if config.prefix_projection:
        fields["hidden"] = config.encoder_hidden_size or sites[""].rows
    if config.init_weights is not None:
        fields["init"] = config.init_weights
    return fields


def _read_order(layers: int) -> list[int]:
    """The parts of a doubled prefix in the order in which the layers read them."""
    return [(4 * layer + part) % (2 * layers) for layer in range(layers) for part in (0, 1)]


def _of_peft(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    assert isinstance(site, ModelSite), "the only kind that it covers"
    if not site.encodes_first:
        return tensors
    prefix, layers = tensors["prefix"], [one for one in site.attentions() if one.place == "decoder"]
    width = sum(2 * attention.width for attention in layers)
    if prefix.shape[1] != width:
        raise DoesNotFit(
            f"the prefix has {prefix.shape[1]} numbers per token, and the {len(layers)} layers of "
            f"{type(site.module).__name__} need {width}"
        )
    columns = prefix.view(len(prefix), 2 * len(layers), -1)
    return {"prefix": columns[:, _read_order(len(layers))].reshape(len(prefix), -1)}


def _for_peft(config: PrefixTuning, sites: Sites, layers: Layers) -> Tables:
    site, prefix = sites[""], layers[""]["prefix"]
    assert isinstance(site, ModelSite), "the only kind that it covers"
    chosen = chosen_attentions(site, config)
    if site.encodes_first and {attention.place for attention in chosen} != {"decoder"}:
        raise DoesNotFit(
            "PEFT has no prefix in an encoder or in cross-attention; save it as .safetensors, or attach with "
            "places=('decoder',)"
        )
    if len({(attention.heads, attention.size) for attention in chosen}) > 1:
        raise DoesNotFit("PEFT has one number of key heads for all layers, and this model has several")
    return {"": {"prefix": _doubled(prefix, len(chosen)) if site.encodes_first else prefix}}


def _doubled(prefix: Tensor, layers: int) -> Tensor:
    """What PEFT has to store for a decoder that has an encoder."""
    order, columns = _read_order(layers), prefix.reshape(len(prefix), 2 * layers, -1)
    stored = torch.zeros_like(columns)
    for place, part in enumerate(order):
        stored[:, part] = columns[:, place]
    if not torch.equal(stored[:, order], columns):
        raise DoesNotFit(
            f"PEFT gives the layers l and l + {layers // 2} of a decoder that has an encoder the same prefix, and "
            "these differ; save it as .safetensors"
        )
    return stored.reshape(len(prefix), -1)


def _stated(config: PrefixTuning, sites: Sites, layers: Layers) -> dict[str, Any]:
    site: Any = sites[""]
    chosen = chosen_attentions(site, config)
    return {
        "encoder_hidden_size": None,
        "init_weights": None,
        "num_attention_heads": chosen[0].heads,
        "num_layers": len(chosen),
        "num_transformer_submodules": 2 if site.encodes_first else 1,
        "prefix_projection": False,
        "token_dim": chosen[0].heads * chosen[0].size,
    }


class PrefixTuningAdapter(PrefixAdapter[PrefixTuning]):
    """On one model: ``prefix`` ``(m, Σ 2·heads·size)``, or the network that makes it.

    Its columns are the key and the value of the first attention, then those of the second, ...: of the decoder, then of
    its cross-attention, then of the encoder.
    """

    trained = (*NETWORK, "prefix")
    peft = Peft(
        type="PREFIX_TUNING",
        settings=Settings(
            name="PrefixTuningConfig",
            defaults={"init_weights": None, "encoder_hidden_size": None, "prefix_projection": False},
            config=_config_of_peft,
            new=_new,
            state=_stated,
        ),
        tensors={"prefix": "prompt_embeddings"},
        read=_of_peft,
        store=_for_peft,
    )

    @classmethod
    def start(cls, site: Site, config: PrefixTuning, given: Given) -> dict[str, Tensor]:
        assert isinstance(site, ModelSite), "the only kind that it covers"
        chosen = chosen_attentions(site, config)
        width, draw = sum(2 * attention.width for attention in chosen), given.generator
        if config.hidden is None:
            zero = torch.zeros(config.tokens, width)
            return {"prefix": zero if config.init == "zero" else torch.randn(config.tokens, width, generator=draw)}

        def uniform(fan: int, *shape: int) -> Tensor:
            return torch.empty(*shape).uniform_(-1 / math.sqrt(fan), 1 / math.sqrt(fan), generator=draw)

        inner, h = chosen[0].width, config.hidden
        tensors = {
            "embedding": torch.randn(config.tokens, inner, generator=draw),
            "weight0": uniform(inner, h, inner),
            "bias0": uniform(inner, h),
            "weight1": uniform(h, width, h),
            "bias1": uniform(h, width),
        }
        if config.init == "zero":
            tensors |= {name: torch.zeros_like(tensors[name]) for name in ("weight1", "bias1")}
        return tensors

    def fit(self) -> None:
        super().fit()
        config = self.config
        chosen = chosen_attentions(self.site, config)
        spans, begin = {}, 0
        for attention in chosen:
            spans[attention.path] = (begin, attention)
            begin += 2 * attention.width
        self.__dict__["spans"] = spans
        self.__dict__["chosen"] = tuple(dict.fromkeys(attention.place for attention in chosen))
        if self.tensor("prefix") is not None:
            if len(self.tensors()) > 1:
                raise DoesNotFit("PrefixTuning has either the network or its output 'prefix', one of the two")
            self.require("prefix", (config.tokens, begin))
            return
        h, inner = config.hidden, chosen[0].width
        self.require("embedding", (config.tokens, inner))
        self.require("weight0", (h, inner))
        self.require("bias0", (h,))
        self.require("weight1", (begin, h))
        self.require("bias1", (begin,))

    spans: dict[str, tuple[int, CachedAttention]]
    chosen: tuple[str, ...]

    @property
    def places(self) -> tuple[str, ...]:
        return self.chosen

    def at(self, path: str) -> tuple[Tensor, Tensor]:
        begin, attention = self.spans[path]
        columns = self._columns(begin, begin + 2 * attention.width)
        shaped = columns.view(-1, 2, attention.heads, attention.size).permute(1, 2, 0, 3)
        return shaped[:1], shaped[1:]

    def _columns(self, begin: int, end: int) -> Tensor:
        """The keys and values of one attention ``(m, 2·heads·size)``.

        A network is run for each attention by itself: a layer that gradient checkpointing runs again then makes all
        that it needs, and no graph is gone through twice.
        """
        prefix = self._parameters.get("prefix")
        if prefix is not None:
            return prefix[:, begin:end]
        if not self.trainable:
            return self.remembered(self.made, *self.tensors().values())[:, begin:end]
        return self._computed(begin, end)

    def _computed(self, begin: int, end: int) -> Tensor:
        t = self.tensors()
        inner = torch.tanh(F.linear(t["embedding"], t["weight0"], t["bias0"]))
        return F.linear(inner, t["weight1"][begin:end], t["bias1"][begin:end])

    def folded(self) -> dict[str, Tensor]:
        return {"prefix": self.made().detach().clone()}

    def made(self) -> Tensor:
        """The whole prefix ``(m, Σ 2·heads·size)``."""
        prefix = self.tensor("prefix")
        if prefix is not None:
            return prefix
        spans = [(begin, begin + 2 * attention.width) for begin, attention in self.spans.values()]
        return torch.cat([self._computed(*span) for span in spans], dim=1)  # part by part: the bits of training


PrefixTuning.adapter = PrefixTuningAdapter
