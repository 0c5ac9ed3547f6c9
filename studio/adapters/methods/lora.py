"""LoRA: a low-rank change of the weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.adapter import METHODS, Adapter, Delta, Factors, Foreign, Given
from studio.adapters.ranked import FactorConfig, checked_rank
from studio.adapters.site import Site
from studio.errors import UnsupportedLayer

__all__ = ["LoRA", "LoRAAdapter", "fold_start", "start_pair"]

Pair = tuple[Tensor, Tensor]


def _kaiming(site: Site, rank: int, generator: torch.Generator) -> Pair:
    bound = 1 / math.sqrt(site.cols)
    down = torch.empty(rank, site.cols).uniform_(-bound, bound, generator=generator)
    return down, torch.zeros(site.rows, rank)


def _gaussian(site: Site, rank: int, generator: torch.Generator) -> Pair:
    down = torch.empty(rank, site.cols).normal_(std=1 / rank, generator=generator)
    return down, torch.zeros(site.rows, rank)


def _orthogonal(site: Site, rank: int, generator: torch.Generator) -> Pair:
    """Two factors that are both non-zero, with ``up @ down = 0`` because they use different orthogonal directions."""
    basis = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    half = rank // 2
    down = (torch.randn(site.cols, half, generator=generator) @ basis[:half]).t() / 10
    up = torch.randn(site.rows, rank - half, generator=generator) @ basis[half:] / 10
    return down, up


RANDOM_STARTS: Final = {"kaiming": _kaiming, "gaussian": _gaussian, "orthogonal": _orthogonal}
"""Starts that change nothing: ``up @ down = 0`` exactly or within rounding."""


def _pissa(weight: Tensor, rank: int) -> Pair:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def _olora(weight: Tensor, rank: int) -> Pair:
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


WEIGHT_STARTS: Final = {"pissa": _pissa, "olora": _olora}
"""Starts that take the factors out of the weight; what they take is subtracted again by a second, frozen pair."""


def start_pair(site: Site, rank: int, init: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws ``down`` and ``up`` of a random start, in the shapes that files have."""
    down, up = RANDOM_STARTS[init](site, rank, generator)
    return {"down": down.reshape(rank, *site.inner_shape).contiguous(), "up": up.contiguous()}


@METHODS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(FactorConfig):
    r"""LoRA adds a low-rank change: ``W' = W + s · up @ down`` with ``s = alpha / rank``.

    Attributes:
        init: the start. ``"kaiming"`` (down uniform in ±1/√in, up zero), ``"gaussian"`` (down normal with deviation
            1/rank, up zero), ``"orthogonal"`` (both factors filled, product zero), ``"pissa"`` (the principal singular
            directions of W), ``"olora"`` (its QR factors). The last two train directions of W itself:
            ``ΔW = s (up @ down − up0 @ down0)`` with the frozen copy of the start as second pair, so W stays as it is.
        use_bias: also train a bias, ``b' = b + s · bias``.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), https://arxiv.org/abs/2106.09685
        | PiSSA (Meng et al., 2024), https://arxiv.org/abs/2404.02948
        | OLoRA (Büyükakyüz, 2024), https://arxiv.org/abs/2406.01775

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> studio.attach(model, studio.LoRA(rank=2, targets=("0",))).parameters
        16
    """

    method = "lora"
    init: str = "kaiming"
    use_bias: bool = False

    def check(self) -> None:
        super().check()
        known = (*RANDOM_STARTS, *WEIGHT_STARTS)
        self.require(self.init in known, "init", f"one of {', '.join(known)}")


class LoRAAdapter(Adapter):
    """LoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``bias`` ``(rows,)``."""

    trained = ("down", "up", "bias")
    frozen = ("down0", "up0")
    fused = True
    foreign = Foreign(
        peft_type="LORA",
        peft_flags={"use_dora": False},
        peft_tensors={"down": "lora_A.weight", "up": "lora_B.weight", "bias": "lora_B.bias"},
        peft_embedding={"down": "lora_embedding_A", "up": "lora_embedding_B"},
        peft_fields={
            "rank": "r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "rank_stabilized": "use_rslora",
            "use_bias": "lora_bias",
        },
        lycoris_tensors={"down": "lora_down.weight", "up": "lora_up.weight", "bias": "diff_b"},
        layouts={"down": ("inner", "inner"), "up": ("spread", "spread"), "bias": ("vector", "vector")},
        needs=("down", "up"),
        ranks=("down",),
        lycoris_scaled=("bias",),
        fold=lambda config, layers: _without_start(config, layers),
    )

    @classmethod
    def start(cls, site: Site, config: LoRA, given: Given) -> dict[str, Tensor]:
        rank = checked_rank(site, config)
        if config.init in RANDOM_STARTS:
            tensors = start_pair(site, rank, config.init, given.generator)
        else:
            scale = config.scale_at(site.path)
            down, up = WEIGHT_STARTS[config.init](given.weight(), rank)
            root = math.sqrt(abs(scale)) or 1.0
            down, up = down.reshape(rank, *site.inner_shape) / root, up / root
            tensors = {"down": down, "up": up, "down0": down, "up0": up}
            tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        if config.use_bias:
            if site.bias_name is None:
                raise UnsupportedLayer(f"{site.path} is an embedding, which has no bias to train; set use_bias=False")
            tensors["bias"] = torch.zeros(site.rows)
        return tensors

    def fit(self) -> None:
        rank = self.require("down", (None, *self.site.inner_shape)).shape[0]
        self.require("up", (self.site.rows, rank))
        if self.tensor("bias") is not None:
            self.require("bias", (self.site.rows,))
        self.__dict__["scale"] = self.config.scale_at(self.site.path)  # type: ignore[attr-defined]

    scale: float

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)  # type: ignore[attr-defined]

    def factors(self) -> Factors:
        parameters: dict[str, Any] = self._parameters
        down, up = fold_start(self.tensors()) if self._buffers else (parameters["down"], parameters["up"])
        return Factors(down, up, self.scale, parameters.get("bias"))

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up, scale, extra = self.factors()
        change = self.site.shaped((up * scale) @ down.flatten(1))
        return Delta(change, None if extra is None else extra * scale)

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up, scale, extra = self.factors()
        change = self.site.low_rank(self.dropped(x), down.to(y.dtype), (up * scale).to(y.dtype))
        return change if extra is None else change + self.site.over_outputs((extra * scale).to(y.dtype))


def fold_start(tensors: dict[str, Tensor]) -> Pair:
    """Returns one pair ``(down, up)`` with ``up @ down = up·down − up0·down0``; rank doubles."""
    down = torch.cat([tensors["down"], tensors["down0"]])
    return down, torch.cat([tensors["up"], -tensors["up0"]], dim=1)


def _without_start(
    config: LoRA, layers: Mapping[str, Mapping[str, Tensor]]
) -> tuple[LoRA, dict[str, dict[str, Tensor]]]:
    """Gives every layer one pair, as other programs know it; the caller adjusts rank and alpha to the doubled rank."""
    plain: dict[str, dict[str, Tensor]] = {}
    for path, tensors in layers.items():
        plain[path] = {name: tensor for name, tensor in tensors.items() if name not in ("down0", "up0")}
        if "down0" in tensors:
            plain[path]["down"], plain[path]["up"] = fold_start(dict(tensors))
    return dataclasses.replace(config, init="kaiming" if config.init in WEIGHT_STARTS else config.init), plain


LoRA.adapter = LoRAAdapter
