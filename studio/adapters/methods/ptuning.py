"""P-tuning: a prompt that a small network makes of embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Given
from studio.adapters.contract.foreign import Choice, Layers, Peft, Settings, Sites
from studio.adapters.sites.site import Site
from studio.adapters.tokens.contract import PromptAdapter, PromptConfig, none_before_decoder
from studio.errors import BadConfig, DoesNotFit

__all__ = ["PTuning", "PTuningAdapter"]

MLP = ("weight0", "bias0", "weight1", "bias1", "weight2", "bias2")
LSTM = ("lstm_first", "lstm_rest", "lstm_hidden", "lstm_bias", "weight0", "bias0", "weight1", "bias1")


@METHODS.register("ptuning")
@dataclass(frozen=True, kw_only=True)
class PTuning(PromptConfig):
    r"""P-tuning puts what a small network ``g`` makes of embeddings ``P`` before the text: ``x' = [g(P); E(ids)]``.

    ``g`` is ``W₂ relu(W₁ relu(W₀ p + b₀) + b₁) + b₂`` ("mlp"), or a bidirectional LSTM over all of ``P`` followed by
    ``W₁ relu(W₀ h + b₀) + b₁`` ("lstm"). It is saved too, so that training can go on; other programs get ``g(P)``.

    Attributes:
        encoder: the network, "mlp" or "lstm".
        hidden: its hidden size; None: the width of the model.
        layers: layers of the LSTM; the MLP has three.
        dropout: probability in [0, 1) between the layers of the LSTM, while training.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        GPT Understands, Too (Liu et al., 2021), https://arxiv.org/abs/2103.10385

    Example:
        >>> PTuning(encoder="lstm", hidden=64).layers
        2
    """

    method = "ptuning"
    rate = 3.0
    encoder: str = "mlp"
    hidden: int | None = None
    layers: int = 2
    dropout: float = 0.0

    def check(self) -> None:
        super().check()
        self.require(self.encoder in ("mlp", "lstm"), "encoder", "'mlp' or 'lstm'")
        self.require(self.hidden is None or self.hidden >= 1, "hidden", "at least 1, or None")
        self.require(self.layers >= 1, "layers", "at least 1")
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        plain = self.layers == 2 and self.dropout == 0
        self.require(self.encoder == "lstm" or plain, "encoder", "'lstm' where layers or dropout are given")


ENCODERS: Final = Choice("PromptEncoderReparameterizationType", ("MLP", "LSTM"), "MLP")


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    encoder = str(fields.get("encoder_reparameterization_type") or "MLP").rpartition(".")[2].lower()
    known = {"encoder": encoder, "hidden": fields.get("encoder_hidden_size")}
    if encoder == "lstm":
        known["layers"] = int(fields.get("encoder_num_layers") or 2)
        known["dropout"] = float(fields.get("encoder_dropout") or 0.0)
    return known


def _new(config: Any, sites: Sites) -> dict[str, Any]:
    if config.encoder_dropout and _config_of_peft(config.to_dict())["encoder"] == "mlp":
        raise BadConfig("encoder_dropout is for the LSTM encoder; PEFT leaves it out of the MLP silently")
    return {}


def _stated(config: PTuning, sites: Sites, layers: Layers) -> dict[str, Any]:
    return {
        "encoder_dropout": config.dropout,
        "encoder_hidden_size": config.hidden or sites[""].rows,
        "encoder_num_layers": config.layers,
        "encoder_reparameterization_type": config.encoder.upper(),
    }


class PTuningAdapter(PromptAdapter[PTuning]):
    """P-tuning on one model: ``embedding`` ``(m, width)`` and the network, or its output ``prompt`` by itself.

    The LSTM's weights are stacked by direction: ``lstm_first`` ``(2, 4h, width)``, ``lstm_rest`` ``(layers − 1, 2, 4h,
    2h)``, ``lstm_hidden`` ``(layers, 2, 4h, h)``, ``lstm_bias`` ``(layers, 2, 2, 4h)`` (of the input, of the state).
    """

    trained = ("embedding", *dict.fromkeys((*MLP, *LSTM)), "prompt")
    peft = Peft(
        type="P_TUNING",
        settings=Settings(
            name="PromptEncoderConfig",
            defaults={
                "encoder_reparameterization_type": ENCODERS,
                "encoder_hidden_size": None,
                "encoder_num_layers": 2,
                "encoder_dropout": 0.0,
            },
            config=_config_of_peft,
            new=_new,
            state=_stated,
        ),
        tensors={"prompt": "prompt_embeddings"},
        store=none_before_decoder,
    )

    @classmethod
    def start(cls, site: Site, config: PTuning, given: Given) -> dict[str, Tensor]:
        width, draw = site.rows, given.generator
        h = config.hidden or width
        total = config.tokens * (2 if config.decoder else 1)
        tensors = {"embedding": torch.randn(total, width, generator=draw)}

        def uniform(fan: int, *shape: int) -> Tensor:
            return torch.empty(*shape).uniform_(-1 / math.sqrt(fan), 1 / math.sqrt(fan), generator=draw)

        sizes = [width, h, h, width]
        if config.encoder == "lstm":
            sizes = [2 * h, 2 * h, width]
            tensors["lstm_first"] = uniform(h, 2, 4 * h, width)
            if config.layers > 1:
                tensors["lstm_rest"] = uniform(h, config.layers - 1, 2, 4 * h, 2 * h)
            tensors["lstm_hidden"] = uniform(h, config.layers, 2, 4 * h, h)
            tensors["lstm_bias"] = uniform(h, config.layers, 2, 2, 4 * h)
        for index, (inner, outer) in enumerate(zip(sizes, sizes[1:], strict=False)):
            tensors[f"weight{index}"] = uniform(inner, outer, inner)
            tensors[f"bias{index}"] = uniform(inner, outer)
        return tensors

    def fit(self) -> None:
        super().fit()
        config, width = self.config, self.site.rows
        if self.tensor("prompt") is not None:
            if len(self.tensors()) > 1:
                raise DoesNotFit("PTuning has either the network or its output 'prompt', one of the two")
            self.require("prompt", (self.total, width))
            return
        h = config.hidden or width
        self.require("embedding", (self.total, width))
        sizes = [width, h, h, width]
        if config.encoder == "lstm":
            sizes = [2 * h, 2 * h, width]
            self.require("lstm_first", (2, 4 * h, width))
            if config.layers > 1:
                self.require("lstm_rest", (config.layers - 1, 2, 4 * h, 2 * h))
            self.require("lstm_hidden", (config.layers, 2, 4 * h, h))
            self.require("lstm_bias", (config.layers, 2, 2, 4 * h))
        for index, (inner, outer) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self.require(f"weight{index}", (outer, inner))
            self.require(f"bias{index}", (outer,))

    def embedded(self, rows: int, tasks: Tensor | None) -> Tensor:
        prompt = self.tensor("prompt")
        if prompt is not None:
            return prompt
        return self.remembered(self._made, *self.tensors().values())

    def folded(self) -> dict[str, Tensor]:
        return {"prompt": self.embedded(1, None).detach().clone()}

    def _made(self) -> Tensor:
        t = self.tensors()
        x = self._through_lstm(t) if self.config.encoder == "lstm" else t["embedding"]
        last = 2 if self.config.encoder == "mlp" else 1
        for index in range(last + 1):
            x = F.linear(x, t[f"weight{index}"], t[f"bias{index}"])
            x = F.relu(x) if index < last else x
        return x

    def _through_lstm(self, t: dict[str, Tensor]) -> Tensor:
        weights: list[Tensor] = []
        for layer in range(self.config.layers):
            for way in (0, 1):
                first = t["lstm_first"][way] if layer == 0 else t["lstm_rest"][layer - 1, way]
                weights += [first, t["lstm_hidden"][layer, way], *t["lstm_bias"][layer, way]]
        x = t["embedding"][None]
        zero = x.new_zeros(2 * self.config.layers, 1, t["lstm_hidden"].shape[-1])
        drops = self.training and self.trainable
        made = torch.lstm(  # type: ignore[attr-defined]
            x, (zero, zero), weights, True, self.config.layers, self.config.dropout, drops, True, True
        )
        return made[0][0]  # type: ignore[no-any-return]


PTuning.adapter = PTuningAdapter
