"""DoRA: a low-rank change of the direction of every row of the weight, and a magnitude of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, Delta, Given
from studio.adapters.contract.coverage import peft_convolves, peft_ungrouped
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Sites, Tables
from studio.adapters.contract.ranked import FactorConfig, checked_rank
from studio.adapters.contract.rows import Rows
from studio.adapters.contract.starts import RANDOM_STARTS, grown_pair, start_pair
from studio.adapters.methods.lora import (
    ALIASES,
    FIELDS,
    KOHYA,
    ON_EMBEDDING,
    PAIR,
    SETTINGS,
    SHAPES,
    without_core,
)
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["DoRA", "DoRAAdapter"]


@METHODS.register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(FactorConfig):
    r"""DoRA splits a weight into magnitude and direction: ``W' = m · (W + s up @ down) / ‖W + s up @ down‖``.

    The norm is taken over each output row, and gradients do not flow through it (section 4.3 of the paper).

    Attributes:
        init: start of the pair: "kaiming", "gaussian" or "orthogonal"; ``m`` starts as the norm, so ``W' = W``.
        axis: what has a magnitude of its own: "outputs", as in the paper, or "inputs", the channels that the layer
            reads, as A1111, OneTrainer and older LyCORIS have it.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., 2024), https://arxiv.org/abs/2402.09353

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> studio.attach(model, studio.DoRA(rank=2, targets=("0",))).parameters
        20
    """

    method = "dora"
    init: str = "kaiming"
    axis: str = "outputs"

    def check(self) -> None:
        super().check()
        self.require(self.axis in ("outputs", "inputs"), "axis", "'outputs' or 'inputs'")
        self.require(self.init in RANDOM_STARTS, "init", f"one of {', '.join(RANDOM_STARTS)}")


_MAGNITUDES: Final = {"magnitude": "lora_magnitude_vector", "magnitude_in": "lora_magnitude_vector_in"}


def _for_peft(config: DoRA, sites: Sites, layers: Layers) -> Tables:
    if config.axis == "inputs":
        raise DoesNotFit("PEFT's DoRA has a magnitude per output, not per input; save with format='kohya'")
    return {path: dict(tensors) for path, tensors in layers.items()}


class DoRAAdapter(Adapter[DoRA]):
    """DoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, and ``magnitude`` ``(rows,)`` or
    ``magnitude_in`` ``(in,)``.
    """

    trained = ("down", "up", "magnitude", "magnitude_in")
    rowwise = ("up", "magnitude")
    needs = ("down", "up", "magnitude")
    or_needs = ("down", "up", "magnitude_in")
    ranks = ("down",)
    peft = Peft(
        type="LORA",
        additive=True,
        settings=dataclasses.replace(SETTINGS, fields=FIELDS, flags={"use_dora": True}),
        tensors={**PAIR, **_MAGNITUDES},
        embedding={**ON_EMBEDDING, **_MAGNITUDES},
        aliases={
            **ALIASES,
            "lora_magnitude_vector.weight": "lora_magnitude_vector",
            "magnitude": "lora_magnitude_vector",
        },
        layouts={**SHAPES, "magnitude": "vector|row"},
        covers=("Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d"),
        limit=peft_ungrouped,
        differs=peft_convolves,
        store=_for_peft,
        diffusers=True,
        # the UNet reads both spellings, transformers (the text encoder) this one only
        respelled={"lora_magnitude_vector": "lora_magnitude_vector.weight"},
    )
    lycoris = Lycoris(
        algo="locon",
        tensors={**KOHYA, "magnitude": "dora_scale", "magnitude_in": "dora_scale"},
        layouts={**SHAPES, "magnitude": "column", "magnitude_in": "row"},
        read=without_core,
    )

    @classmethod
    def start(cls, site: Site, config: DoRA, given: Given) -> dict[str, Tensor]:
        matrix = given.weight()
        drawn = start_pair(site, checked_rank(site, config), config.init, given.generator)
        tensors = {name: tensor.to(matrix.device) for name, tensor in drawn.items()}
        if config.axis == "inputs":  # the pair changes nothing yet
            return {**tensors, "magnitude_in": _input_norms(matrix, site)}
        norm = _row_norms(matrix, tensors["down"].flatten(1), tensors["up"], config.scale_at(site.path))
        return {**tensors, "magnitude": norm}

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {"axis": "inputs" if any("magnitude_in" in tensors for tensors in layers.values()) else "outputs"}

    @classmethod
    def cut(cls, tensors: Mapping[str, Tensor], rows: Rows, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
        if "magnitude_in" in tensors:
            raise DoesNotFit("its magnitude per input is that of all outputs together")
        return super().cut(tensors, rows, fixed)

    def fit(self) -> None:
        rank = self.require("down", (None, *self.site.inner_shape)).shape[0]
        self.require("up", (self.site.rows, rank))
        if self.tensor("magnitude_in") is None:
            self.require("magnitude", (self.site.rows,))
        else:
            self.require("magnitude_in", (self.site.inner_shape[0],))
        self.__dict__["scale"] = self.config.scale_at(self.site.path)

    scale: float

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def grown(self, rank: int, generator: torch.Generator) -> tuple[DoRA, dict[str, Tensor]]:
        return grown_pair(self, rank, generator)

    def _gain(self, weight: Tensor) -> Tensor:
        """``m / ‖W + s up @ down‖`` per output, ``(rows,)``; computed once while neither adapter nor base changes."""
        down, up, magnitude = (self._parameters[name] for name in ("down", "up", "magnitude"))
        assert down is not None and up is not None and magnitude is not None

        def gain() -> Tensor:
            with torch.no_grad():
                norm = _row_norms(self.site.matrix(weight), down.flatten(1), up, self.scale)
            return magnitude / norm

        return self.remembered(gain, weight, down, up, magnitude)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up = self._parameters["down"], self._parameters["up"]
        assert down is not None and up is not None
        matrix = self.site.matrix(weight).to(up.dtype)
        moved = matrix + (up * self.scale) @ down.flatten(1)
        inputs = self._parameters.get("magnitude_in")
        if inputs is not None:
            gain = (inputs / _input_norms(moved.detach(), self.site)).repeat_interleave(self.site.cols // len(inputs))
            return Delta(self.site.shaped(moved * gain - matrix))
        return Delta(self.site.shaped(self._gain(weight)[:, None] * moved - matrix))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.tensor("magnitude_in") is not None:
            return super().change(self.dropped(x), y, weight, bias)
        gain = self._gain(weight)
        plain = y if bias is None else y - self.site.over_outputs(bias.to(y.dtype))
        down, up = self._scaled(gain * self.scale, y.dtype)
        low_rank = self.site.low_rank(self.dropped(x), down, up)
        return torch.addcmul(low_rank, plain, self.site.over_outputs((gain - 1).to(y.dtype)))

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        if total is not y or self.tensor("magnitude_in") is not None:
            return super().act(total, x, y, weight, bias, strength)
        gain = self._gain(weight)
        more = strength * (gain - 1)
        factor = self.site.over_outputs((1 + more).to(y.dtype))
        if bias is None:
            total = y * factor
        else:  # (y - b) f + b
            total = torch.addcmul(self.site.over_outputs((-more * bias).to(y.dtype)), y, factor)
        down, up = self._scaled(gain * (self.scale * strength), y.dtype)
        return self.site.add_raised(total, self.site.lower(self.dropped(x), down), up, own=True)

    def _scaled(self, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        down, up = self._parameters["down"], self._parameters["up"]
        assert down is not None and up is not None
        return down.to(dtype), (up * scale[:, None]).to(dtype)


def _input_norms(weight: Tensor, site: Site) -> Tensor:
    """``‖W‖`` of every channel that a layer reads, ``(in,)``; of a matrix ``(rows, cols)``."""
    by_input = weight.reshape(site.rows, site.inner_shape[0], -1)
    return torch.linalg.vector_norm(by_input, dim=(0, 2)).clamp_min(torch.finfo(weight.dtype).tiny)


def _row_norms(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """``‖W + s up @ down‖`` of every row, from Gram terms: no matrix of the size of ``W`` is made.

    ``‖w_i + s u_i D‖² = ‖w_i‖² + 2 s u_i·(D w_i) + s² u_i (D Dᵀ) u_iᵀ``
    """
    exact = torch.promote_types(weight.dtype, up.dtype)  # the weight is the wider one where it is baked in fp32
    up, down = (up * scale).to(exact), down.to(exact)
    cross = (weight @ down.t().to(weight.dtype)).to(exact)
    square = torch.linalg.vector_norm(weight, dim=1, dtype=up.dtype).square()
    square = square + 2 * (up * cross).sum(1) + ((up @ (down @ down.t())) * up).sum(1)
    return square.clamp_min(torch.finfo(up.dtype).tiny).sqrt()


DoRA.adapter = DoRAAdapter
