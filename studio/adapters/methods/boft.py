"""BOFT: the weight is turned by a product of butterfly factors, block-diagonal rotations of shuffled inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, AdapterConfig, Given
from studio.adapters.contract.coverage import peft_pads, peft_uneven
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Settings, Sites, Tables
from studio.adapters.contract.rotation import (
    Rotation,
    block_size_at,
    blocks_of_peft,
    cayley,
    from_lycoris,
    packed,
    packed_size,
    shown_blocks,
    skew,
    to_lycoris,
    turn_blocks,
)
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig, DoesNotFit

__all__ = ["BOFT", "BOFTAdapter"]


@METHODS.register("boft")
@dataclass(frozen=True, kw_only=True)
class BOFT(AdapterConfig):
    r"""BOFT turns a layer's inputs by butterfly factors: ``f(x) = gain · W (x R) + b``, ``R = B_m … B_2 B_1``.

    Every ``B_i`` turns blocks of ``block_size`` numbers, as OFT does, after a shuffle that brings together numbers that
    are up to ``block_size · 2^(i − 1)`` apart: few small blocks make a dense rotation. In matrix form
    ``W' = diag(gain) W Rᵀ``, on convolutions too.

    Attributes:
        block_size: size of the blocks, >= 2, even where ``factors > 1``; ``block_size · 2^(factors − 1)`` has to divide
            the inputs of the layer (``in/groups · kh · kw`` of a convolution).
        block_pattern: block size of the layers that match a pattern; the first match counts.
        factors: number ``m`` of butterfly factors, at least 1.
        outputs: turn the outputs instead, ``W' = diag(gain) R W`` (LyCORIS; an embedding's outputs are always turned).
        dropout: probability in [0, 1) with which, while training, a block of one factor drawn at random is left out.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization (Liu et al., 2023),
        https://arxiv.org/abs/2311.06243

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> studio.attach(model, studio.BOFT(block_size=2, factors=3, targets=("0",))).parameters
        16
    """

    method = "boft"
    small: ClassVar[Mapping[str, Any]] = {"block_size": 2}
    patterns: ClassVar[tuple[str, ...]] = ("block_pattern",)
    block_size: int = 4
    block_pattern: Mapping[str, int] = field(default_factory=dict)
    factors: int = 1
    outputs: bool = False
    dropout: float = 0.0

    def check(self) -> None:
        whole = isinstance(self.factors, int) and not isinstance(self.factors, bool)
        self.require(whole and self.factors >= 1, "factors", "a whole number, at least 1")
        for name, size in (
            ("block_size", self.block_size),
            *(("block_pattern", v) for v in self.block_pattern.values()),
        ):
            sound = isinstance(size, int) and not isinstance(size, bool) and size >= 2
            self.require(sound, name, "a whole number, at least 2")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")


# -- PEFT: whole matrices of which the skew-symmetric half counts, and the inverse rotation ----------------------------


def _new(config: Any, sites: Sites) -> dict[str, Any]:
    return blocks_of_peft(config, sites, config.boft_block_size, config.boft_block_num) | {
        "factors": config.boft_n_butterfly_factor
    }


def _of_peft(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {"skew": packed(tensors["skew"]) / -2}
    return {**made, "gain": tensors["gain"].reshape(-1)} if "gain" in tensors else made


def _for_peft(config: BOFT, sites: Sites, layers: Layers) -> Tables:
    if config.outputs:
        raise DoesNotFit("PEFT has no BOFT that turns outputs; save with format='diffusers'")
    sizes = {(tensors["skew"].shape[0], packed_size(tensors["skew"].shape[2])) for tensors in layers.values()}
    counts = {tensors["skew"].shape[:2] for tensors in layers.values()}
    if len(sizes) > 1 and len(counts) > 1:
        raise DoesNotFit(
            f"PEFT has one block size, or one number of blocks, for all layers; these have (factors, block size) of "
            f"{sorted(sizes)}; save with format='diffusers'"
        )
    made = {}
    for path, tensors in layers.items():
        whole = skew(-tensors["skew"], packed_size(tensors["skew"].shape[2]))
        shape = (-1, 1) if sites[path].kind == "linear" else (1, -1)
        made[path] = {"skew": whole, "gain": tensors["gain"].reshape(shape)}
    return made


def _stated(config: BOFT, sites: Sites, layers: Layers) -> dict[str, Any]:
    """Says the size of the blocks, or their number where it is what all layers have in common."""
    factors, count, size, _ = next(iter(layers.values()))["skew"].shape
    one = len({tensors["skew"].shape[2] for tensors in layers.values()}) == 1
    sizes = {"boft_block_size": size, "boft_block_num": 0} if one else {"boft_block_size": 0, "boft_block_num": count}
    return {**sizes, "boft_n_butterfly_factor": factors}


# -- LyCORIS: the numbers of the two halves of a block take turns ------------------------------------------------------


def _of_lycoris(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = tensors["skew"]
    half = whole.shape[-1] // 2
    if whole.shape[-1] % 2 == 0:
        whole = whole.unflatten(-1, (half, 2)).transpose(-1, -2).flatten(-2)
        whole = whole.unflatten(-2, (half, 2)).transpose(-2, -3).flatten(-3, -2)
    return {"gain": torch.ones(site.rows), **from_lycoris(fields, site, {**tensors, "skew": whole})}


def _for_lycoris(config: BOFT, sites: Sites, layers: Layers) -> Tables:
    if not config.outputs or any(packed_size(tensors["skew"].shape[-1]) % 2 for tensors in layers.values()):
        raise DoesNotFit(
            "LyCORIS' BOFT turns outputs in blocks of an even size; save with format='diffusers', or 'peft' for inputs"
        )
    made = to_lycoris(layers)
    for tensors in made.values():
        half = tensors["skew"].shape[-1] // 2
        woven = tensors["skew"].unflatten(-1, (2, half)).transpose(-1, -2).flatten(-2)
        tensors["skew"] = woven.unflatten(-2, (2, half)).transpose(-2, -3).flatten(-3, -2).contiguous()
    return made


class BOFTAdapter(Rotation[BOFT]):
    """BOFT on one site: ``skew`` ``(factors, blocks, b (b − 1) / 2)``, above the diagonals; ``gain`` ``(rows,)``."""

    trained = ("skew", "gain")
    needs = ("skew",)
    peft = Peft(
        type="BOFT",
        settings=Settings(
            name="BOFTConfig",
            defaults={
                "boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1, "boft_dropout": 0.0,
                "fan_in_fan_out": False, "bias": "none", "init_weights": True,
            },
            fields={"dropout": "boft_dropout"},
            reads=("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
            new=_new,
            state=_stated,
        ),
        tensors={"skew": "boft_R", "gain": "boft_s"},
        covers=("Linear", "Conv2d"),
        limit=peft_uneven,
        differs=peft_pads,
        read=_of_peft,
        store=_for_peft,
    )  # fmt: skip
    lycoris = Lycoris(
        algo="boft",
        tensors={"skew": "oft_blocks/4", "gain": "rescale"},
        layouts={"gain": "column"},
        fixed={"outputs": True},
        beside={"alpha": 0.0},
        read=_of_lycoris,
        store=_for_lycoris,
    )

    @classmethod
    def start(cls, site: Site, config: BOFT, given: Given) -> dict[str, Tensor]:
        size = site.rows if config.outputs or site.kind == "embedding" else site.cols
        least = 2 ** (config.factors - 1)
        block = block_size_at(site, config, config.block_pattern, config.block_size, size, least)
        if config.factors > 1 and block % 2:
            raise BadConfig(
                f"BOFT(block_size={block}, factors={config.factors}) shuffles halves of blocks at {site.path}; use an "
                "even block size, or factors=1"
            )
        return {
            "skew": torch.zeros(config.factors, size // block, block * (block - 1) // 2),
            "gain": torch.ones(site.rows),
        }

    def fit(self) -> None:
        self.__dict__["outputs"] = self.config.outputs or self.site.kind == "embedding"
        factors, count, entries = self.require("skew", (None, None, None)).shape
        self.__dict__["block"] = block = packed_size(entries)
        fits = count * block == self.size and count % 2 ** (factors - 1) == 0 and (factors == 1 or block % 2 == 0)
        if not fits:
            raise DoesNotFit(
                f"BOFT at {self.site.path}: {factors} butterfly factors of {count} blocks of {block} x {block} do not "
                f"cover the {self.size} {'outputs' if self.outputs else 'inputs'} of the layer"
            )
        self.require("gain", (self.site.rows,))

    block: int

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        factors = [tensors["skew"].shape[0] for tensors in layers.values()]
        return {**shown_blocks(layers), "factors": max(factors, key=factors.count)} if factors else {}

    def turned(self, v: Tensor, *, back: bool = False, drop: bool = False) -> Tensor:
        entries = cast(Tensor, self._parameters["skew"])
        blocks = self.remembered(lambda: cayley(skew(entries, self.block)), entries)
        kept = self.keeps(*blocks.shape[:2]) if drop else None
        if kept is not None:
            left = int(torch.randint(len(blocks), (), device="cpu"))
            kept[torch.arange(len(blocks), device="cpu") != left] = True
            blocks = blocks * kept.to(blocks)
        back ^= self.outputs  # outputs are turned by R from the left
        blocks = (blocks.mT if back else blocks).to(v.dtype)
        if len(blocks) == 1:
            return turn_blocks(v, blocks[0])
        total = v
        for index in range(len(blocks)) if back else reversed(range(len(blocks))):
            turned = turn_blocks(_shuffled(total, index, self.block), blocks[index])
            total = total + _unshuffled(turned, index, self.block)
        return total - v


def _shuffled(v: Tensor, index: int, block: int) -> Tensor:
    """Brings the halves of blocks together that are ``2^index`` half blocks apart."""
    return v if index == 0 else v.unflatten(-1, (-1, 2, 2**index, block // 2)).transpose(-3, -2).flatten(-4)


def _unshuffled(v: Tensor, index: int, block: int) -> Tensor:
    return v if index == 0 else v.unflatten(-1, (-1, 2**index, 2, block // 2)).transpose(-3, -2).flatten(-4)


BOFT.adapter = BOFTAdapter
