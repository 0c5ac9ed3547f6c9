"""LoRA: a low-rank change of the weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, Delta, Factors, Given
from studio.adapters.contract.calibration import Components, Covariance, Gauge
from studio.adapters.contract.foreign import Foreign, Way, peft_convolves, peft_ungrouped
from studio.adapters.contract.ranked import FactorConfig, checked_rank
from studio.adapters.contract.starts import (
    DATA_STARTS,
    RANDOM_STARTS,
    WEIGHT_STARTS,
    grown_pair,
    loftq,
    redistributed,
    start_pair,
    taken_pair,
)
from studio.adapters.sites.site import LAYERS, Site
from studio.config import finite
from studio.errors import BadConfig, UnsupportedLayer, nearest

__all__ = ["RANDOM_STARTS", "LoRA", "LoRAAdapter", "fold_start", "start_pair"]

INITS = (*RANDOM_STARTS, *WEIGHT_STARTS, "eva", "loftq")


@METHODS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(FactorConfig):
    r"""LoRA adds a low-rank change: ``W' = W + s · up @ down`` with ``s = alpha / rank``.

    Attributes:
        init: the start.
            *Drawn*: ``"kaiming"`` (down uniform in ±1/√in, up zero), ``"gaussian"`` (down normal with deviation 1/rank,
            up zero), ``"orthogonal"`` (both factors filled, product zero).
            *Taken out of W*: ``"pissa"`` (its principal singular directions), ``"pissa-fast"`` (the same, nearly, by
            subspace iteration), ``"olora"`` (its QR factors), ``"corda"`` (the largest singular directions of ``W C``,
            brought back by ``C⁻¹``; ``C`` is the covariance of the inputs), ``"corda-kpm"`` (the smallest ones, to
            preserve what W knows). They train directions of W itself:
            ``ΔW = s (up @ down − up0 @ down0)`` with the frozen copy of the start as second pair, so W stays as it is.
            *Made from data*: ``"eva"`` (down: the principal directions of the inputs, up zero; ranks move to the layers
            whose inputs they explain most). It and CorDA need ``attach(..., calibrate=...)``.
            *For a quantised base*: ``"loftq"`` (the best pair for ``up @ down ≈ W₀ − W`` where ``W₀`` is the layer of
            ``attach(..., original=...)``); the one start that changes something, see :func:`studio.quantize`.
        use_bias: also train a bias, ``b' = b + s · bias``.
        iterations: subspace iterations of ``"pissa-fast"``; None: 4.
        rho: with ``"eva"``, a layer gets at most ``rho`` times its rank; 1 keeps all ranks. None: 2.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), https://arxiv.org/abs/2106.09685
        | PiSSA (Meng et al., 2024), https://arxiv.org/abs/2404.02948
        | OLoRA (Büyükakyüz, 2024), https://arxiv.org/abs/2406.01775
        | CorDA (Yang et al., 2024), https://arxiv.org/abs/2406.05223
        | EVA, Parameter Efficient Fine-tuning via Explained Variance Adaptation (Paischer et al., 2024),
          https://arxiv.org/abs/2410.07170
        | LoftQ (Li et al., 2023), https://arxiv.org/abs/2310.08659

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> studio.attach(model, studio.LoRA(rank=2, targets=("0",))).parameters
        16
    """

    method = "lora"
    init: str = "kaiming"
    use_bias: bool = False
    iterations: int | None = None
    rho: float | None = None

    def check(self) -> None:
        super().check()
        if self.init not in INITS:
            close = nearest(str(self.init), INITS, 1)[0]
            raise BadConfig(f"LoRA(init={self.init!r}): did you mean {close!r}? (starts: {', '.join(INITS)})")
        for name, owner, least in (("iterations", "pissa-fast", 0), ("rho", "eva", 1)):
            value = getattr(self, name)
            if value is not None:
                self.require(self.init == owner, name, f"left out: it is of init={owner!r}, this is {self.init!r}")
                self.require(finite(value) and value >= least, name, f"a number of at least {least}")
        self.require(self.iterations is None or isinstance(self.iterations, int), "iterations", "a whole number")

    @property
    def data_driven(self) -> bool:
        return self.init in DATA_STARTS

    @property
    def restores(self) -> bool:
        return self.init == "loftq"

    @property
    def most(self) -> float:
        """What a rank may be multiplied by when EVA moves ranks."""
        return 2.0 if self.rho is None else float(self.rho)

    def gauge(self, site: Site) -> Gauge:
        if self.init != "eva":
            return Covariance()
        wanted = round(self.rank_at(site.path) * self.most)
        return Components(min(site.cols, 2 * wanted + 8))


class LoRAAdapter(Adapter):
    """LoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``bias`` ``(rows,)``.

    Experts that a block keeps in one parameter have a pair each: ``down`` ``(E, r, cols)``, ``up`` ``(E, rows, r)``.
    """

    kinds: ClassVar[tuple[str, ...]] = (*LAYERS, "parameter", "experts")
    trained: ClassVar[tuple[str, ...]] = ("down", "up", "bias")
    frozen: ClassVar[tuple[str, ...]] = ("down0", "up0")
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
        peft_way=Way(limit=peft_ungrouped, differs=peft_convolves),
        lycoris_tensors={"down": "lora_down.weight", "up": "lora_up.weight", "bias": "diff_b"},
        layouts={"down": ("inner", "inner"), "up": ("spread", "spread"), "bias": ("vector", "vector")},
        needs=("down", "up"),
        ranks=("down",),
        lycoris_scaled=("bias",),
        fold=lambda config, layers: _without_start(config, layers),
    )

    @classmethod
    def plan(cls, sites: Mapping[str, Site], config: LoRA, given: Mapping[str, Given]) -> LoRA:
        if config.init != "eva" or config.most == 1.0:
            return config
        return redistributed(sites, config, given, config.most)

    @classmethod
    def start(cls, site: Site, config: LoRA, given: Given) -> dict[str, Tensor]:
        rank = checked_rank(site, config)
        if config.init in RANDOM_STARTS:
            tensors = start_pair(site, rank, config.init, given.generator)
        elif site.lead:
            raise BadConfig(
                f"LoRA(init={config.init!r}) looks at one matrix, and {site.path} holds {site.lead[0]} experts; they "
                f"start with one of {', '.join(RANDOM_STARTS)}"
            )
        elif config.init == "eva":
            down = given.inputs.directions(rank, site.path).float().reshape(rank, *site.inner_shape).contiguous()
            tensors = {"down": down, "up": torch.zeros(site.rows, rank).to(down)}
        else:
            scale = config.scale_at(site.path)
            taken = config.init in WEIGHT_STARTS
            down, up = taken_pair(site, config, rank, given) if taken else _restoring(site, rank, scale, given)
            root = math.sqrt(abs(scale)) or 1.0
            down, up = down.reshape(rank, *site.inner_shape) / root, up / root
            tensors = {"down": down, "up": up, **({"down0": down, "up0": up} if taken else {})}
            tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        if config.use_bias:
            if site.bias_name is None:
                raise UnsupportedLayer(f"{site.path} has no bias that could be trained; set use_bias=False")
            tensors["bias"] = torch.zeros(site.rows)
        return tensors

    def fit(self) -> None:
        lead = self.site.lead
        rank = self.require("down", (*lead, None, *self.site.inner_shape)).shape[len(lead)]
        self.require("up", (*lead, self.site.rows, rank))
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

    def grown(self, rank: int, generator: torch.Generator) -> tuple[Any, dict[str, Tensor]]:
        if self.site.lead:
            raise UnsupportedLayer(f"{self.site.path} holds experts, whose rank cannot grow; attach at the new rank")
        return grown_pair(self, rank, generator)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up, scale, extra = self.factors()
        change = self.site.shaped((up * scale) @ down.flatten(1 + len(self.site.lead)))
        return Delta(change, None if extra is None else extra * scale)

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up, scale, extra = self.factors()
        change = self.site.low_rank(self.dropped(x), down.to(y.dtype), (up * scale).to(y.dtype))
        return change if extra is None else change + self.site.over_outputs((extra * scale).to(y.dtype))


def _restoring(site: Site, rank: int, scale: float, given: Given) -> tuple[Tensor, Tensor]:
    """LoftQ's pair, which gives back what quantisation took from the weight."""
    assert given.original is not None, "attach() has seen to it"
    if scale <= 0:
        raise BadConfig(f"LoRA(init='loftq') at {site.path} has the scale {scale:g}; give an alpha above 0")
    return loftq(site, given.weight(), given.original(), rank)


def fold_start(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
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
    if config.init in WEIGHT_STARTS:
        config = dataclasses.replace(config, init="kaiming", iterations=None)
    return config, plain


LoRA.adapter = LoRAAdapter
