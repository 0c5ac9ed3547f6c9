"""OFT: the weight is turned by a block-diagonal rotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, AdapterConfig, Given
from studio.adapters.contract.coverage import peft_wide
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Settings, Sites, Tables
from studio.adapters.contract.rotation import (
    FLAT,
    Rotation,
    block_size_at,
    blocks_of_peft,
    cayley,
    from_lycoris,
    packed_size,
    shown_blocks,
    skew,
    to_lycoris,
    turn_blocks,
)
from studio.adapters.contract.rows import Rows, cut_rows
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit

__all__ = ["OFT", "OFTAdapter"]

NEUMANN: Final = "use_cayley_neumann"
TERMS: Final = "num_cayley_neumann_terms"


@METHODS.register("oft")
@dataclass(frozen=True, kw_only=True)
class OFT(AdapterConfig):
    r"""OFT turns blocks of a layer's inputs: ``f(x) = W (x R) + b``, ``R = diag(R_1, R_2, …)``.

    ``R_i = (I + Q_i)(I − Q_i)⁻¹`` of a skew-symmetric ``Q_i`` is a rotation (Cayley's parametrization): the angles
    between the rows of the weight stay as they are. In matrix form ``W' = W Rᵀ``, on convolutions too.

    Attributes:
        block_size: size of the blocks, >= 2; it has to divide the inputs of the layer (``in/groups · kh · kw`` of a
            convolution).
        block_pattern: block size of the layers that match a pattern; the first match counts.
        terms: None for the exact rotation; a number >= 2 for so many terms of its series ``I + 2Q + 2Q² + … +
            Q^(terms − 1)``, which is a rotation only nearly (5 is PEFT's default).
        share: all blocks of a layer are the same.
        outputs: turn the outputs instead, ``W' = Rᵀ W`` (LyCORIS' Diag-OFT; an embedding's outputs are always turned).
        use_gain: also train a gain for every row, ``W' = diag(gain) W Rᵀ`` (the paper's re-scaled OFT).
        eps: None, or the bound of constrained OFT: after each step the ``k`` blocks ``Q_i`` are brought back to
            ``‖Q_i‖ <= eps / √k``.
        dropout: probability in [0, 1) with which a block is left out (is the identity) while training.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | Controlling Text-to-Image Diffusion by Orthogonal Finetuning (Qiu et al., 2023), https://arxiv.org/abs/2306.07280
        | Orthogonal Finetuning Made Scalable (Qiu et al., 2025), https://arxiv.org/abs/2506.19847

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> studio.attach(model, studio.OFT(block_size=4, targets=("0",))).parameters
        12
    """

    method = "oft"
    rate = 0.5
    small: ClassVar[Mapping[str, Any]] = {"block_size": 2}
    patterns: ClassVar[tuple[str, ...]] = ("block_pattern",)
    block_size: int = 32
    block_pattern: Mapping[str, int] = field(default_factory=dict)
    terms: int | None = None
    share: bool = False
    outputs: bool = False
    use_gain: bool = False
    eps: float | None = None
    dropout: float = 0.0

    def check(self) -> None:
        for name, size, least in (
            ("block_size", self.block_size, 2),
            *(("block_pattern", size, 1) for size in self.block_pattern.values()),  # LyCORIS has layers of blocks of 1
        ):
            sound = isinstance(size, int) and not isinstance(size, bool) and size >= least
            self.require(sound, name, f"a whole number, at least {least}")
        sound = self.terms is None or (isinstance(self.terms, int) and self.terms >= 2)
        self.require(sound, "terms", "a whole number, at least 2, or None for the exact rotation")
        self.require(self.eps is None or (finite(self.eps) and self.eps > 0), "eps", "a number above 0, or None")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")


def _bounded(packed: Tensor, eps: float) -> Tensor:
    """Brings every ``Q`` to ``‖Q‖ <= eps / √k``; ``‖Q‖² = 2 Σ entries²``."""
    bound = eps / packed.shape[0] ** 0.5
    norm = torch.linalg.vector_norm(packed, dim=1, keepdim=True) * 2**0.5
    return torch.where(norm <= bound, packed, packed * (bound / norm))


def _within(packed: Tensor, eps: float) -> bool:
    return torch.allclose(_bounded(packed, eps), packed, rtol=1e-5, atol=0.0)


# -- PEFT: its exact rotation is the inverse of its series, and its series has other terms than it says ----------------

_FACTORS: Final = {2: 2.0}  # PEFT's two terms are I + 2Q, ours I + Q


def _terms(fields: Mapping[str, Any]) -> int | None:
    """The terms that PEFT computes with: its 3 are the 4 of the series."""
    terms = int(fields.get(TERMS, 5)) if fields.get(NEUMANN, True) else None
    return 4 if terms == 3 else terms


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Makes our fields of PEFT's.

    Raises:
        DoesNotFit: a rotation that is none, or of a PEFT before 0.18, which computed another one.
    """
    terms = _terms(fields)
    if terms is not None:
        version = str(fields.get("peft_version") or "0").split(".")
        number = tuple(int(part) if part.isdigit() else 0 for part in version[:2])
        if number < (0, 18):
            raise DoesNotFit(
                f"peft_version={fields.get('peft_version')!r} with {NEUMANN}=True: PEFT before 0.18 computed another "
                "series, which it does not read itself any more; train the adapter again"
            )
        if terms < 2:
            raise DoesNotFit(f"{TERMS}={fields.get(TERMS)!r}: with it PEFT computes no rotation at all")
    eps = float(fields.get("eps", 6e-5)) if fields.get("coft") else None
    return {"terms": terms, "eps": eps}


def _new(config: Any, sites: Sites) -> dict[str, Any]:
    return blocks_of_peft(config, sites, config.oft_block_size, config.r, fitted=True)


def _of_peft(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    packed = tensors["skew"]
    if fields.get("coft"):
        packed = _bounded(packed, float(fields.get("eps", 6e-5)))
    terms = _terms(fields)
    return {**tensors, "skew": -packed if terms is None else packed * _FACTORS.get(terms, 1.0)}


def _for_peft(config: OFT, sites: Sites, layers: Layers) -> Tables:
    if config.use_gain or config.terms == 3 or config.outputs:
        found = "use_gain=True" if config.use_gain else "outputs=True" if config.outputs else "terms=3"
        raise DoesNotFit(f"PEFT has no OFT with {found}; save with format='diffusers'")
    counts, blocks = _counts(layers), _sizes(layers)
    if len(blocks) > 1 and (len(counts) > 1 or config.share):
        raise DoesNotFit(
            f"PEFT has one block size, or one number of blocks, for all layers; these have blocks of {sorted(blocks)}; "
            "save with format='diffusers'"
        )
    factor = -1.0 if config.terms is None else 1 / _FACTORS.get(config.terms, 1.0)
    return {path: {"skew": tensors["skew"] * factor} for path, tensors in layers.items()}


def _stated(config: OFT, sites: Sites, layers: Layers) -> dict[str, Any]:
    """Says the size of the blocks, or their number where it is what all layers have in common, and the series."""
    blocks = _sizes(layers)
    size, count = (blocks.pop(), 0) if len(blocks) == 1 else (0, _counts(layers).pop())
    fields: dict[str, Any] = {
        "oft_block_size": size,
        "r": count,
        NEUMANN: config.terms is not None,
        TERMS: config.terms or 5,
        "peft_version": "0.18.0",
    }
    factor = 1.0 if config.terms is None else _FACTORS.get(config.terms, 1.0)
    if config.eps is not None and all(_within(tensors["skew"] * factor, config.eps) for tensors in layers.values()):
        fields |= {"coft": True, "eps": config.eps}
    return fields


def _counts(layers: Layers) -> set[int]:
    return {tensors["skew"].shape[0] for tensors in layers.values()}


def _sizes(layers: Layers) -> set[int]:
    return {packed_size(tensors["skew"].shape[1]) for tensors in layers.values()}


def _for_lycoris(config: OFT, sites: Sites, layers: Layers) -> Tables:
    if not config.outputs or config.terms is not None or config.share:
        raise DoesNotFit(
            "LyCORIS' OFT turns outputs, exactly, and every block by itself (outputs=True, terms=None, share=False); "
            "save with format='diffusers', or 'peft' for inputs"
        )
    return to_lycoris(layers)


class OFTAdapter(Rotation[OFT]):
    """OFT on one site: ``skew`` ``(blocks, b (b − 1) / 2)``, above the diagonals of ``Q``; ``gain`` ``(rows,)``."""

    trained = ("skew", "gain")
    rowwise = ("skew", "gain")
    needs = ("skew",)
    peft = Peft(
        type="OFT",
        settings=Settings(
            name="OFTConfig",
            defaults={
                "r": 0, "oft_block_size": 32, "module_dropout": 0.0, "fan_in_fan_out": False, "bias": "none",
                "init_weights": True, "coft": False, "eps": 6e-5, "block_share": False, NEUMANN: True, TERMS: 5,
            },
            fields={"share": "block_share", "dropout": "module_dropout"},
            reads=("r", "oft_block_size", "coft", "eps", NEUMANN, TERMS),
            config=_config_of_peft,
            new=_new,
            state=_stated,
        ),
        tensors={"skew": "oft_R.weight", "gain": "oft_gain"},  # PEFT itself has no gain
        embedding={"skew": "oft_embedding_R.weight", "gain": "oft_gain"},
        layouts={"gain": "vector"},
        covers=("Linear", "Embedding", "Conv2d"),
        limit=peft_wide,
        read=_of_peft,
        store=_for_peft,
    )  # fmt: skip
    lycoris = Lycoris(
        algo="diag-oft",
        tensors={"skew": "oft_blocks/3", "gain": "rescale"},
        layouts={"gain": "column"},
        fixed={"outputs": True},
        beside={"alpha": 0.0},
        read=from_lycoris,
        store=_for_lycoris,
    )

    @classmethod
    def start(cls, site: Site, config: OFT, given: Given) -> dict[str, Tensor]:
        size = site.rows if config.outputs or site.kind == "embedding" else site.cols
        block = block_size_at(site, config, config.block_pattern, config.block_size, size)
        tensors = {"skew": torch.zeros(1 if config.share else size // block, block * (block - 1) // 2)}
        return {**tensors, "gain": torch.ones(site.rows)} if config.use_gain else tensors

    @classmethod
    def cut(cls, tensors: Mapping[str, Tensor], rows: Rows, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
        if fixed.get("outputs"):
            return super().cut(tensors, rows, fixed)
        return cut_rows(tensors, ("gain",), rows)  # what turns the inputs is the same for every output

    def fit(self) -> None:
        config = self.config
        self.__dict__["outputs"] = config.outputs or self.site.kind == "embedding"
        count, packed = self.require("skew", (None, None)).shape
        self.__dict__["block"] = block = packed_size(packed)
        if self.size % block or count != (1 if config.share else self.size // block):
            raise DoesNotFit(
                f"OFT at {self.site.path}: {count} blocks of {block} x {block} do not cover the {self.size} "
                f"{'outputs' if self.outputs else 'inputs'} of the layer"
            )
        if self.tensor("gain") is not None:
            self.require("gain", (self.site.rows,))
        self.__dict__["moves"] = not self.outputs and self.tensor("gain") is None and self.site.kind in FLAT

    block: int

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def _blocks(self, drop: bool) -> Tensor:
        """``R_i - I`` for every block, ``(blocks, b, b)``, or for the one that all share."""
        packed, config = cast(Tensor, self._parameters["skew"]), self.config
        blocks = self.remembered(lambda: cayley(skew(packed, self.block), config.terms), packed)
        kept = self.keeps(self.size // self.block) if drop else None
        return blocks if kept is None else blocks * kept.to(blocks)

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {**shown_blocks(layers), "use_gain": any("gain" in tensors for tensors in layers.values())}

    def turned(self, v: Tensor, *, back: bool = False, drop: bool = False) -> Tensor:
        blocks = self._blocks(drop)
        return turn_blocks(v, (blocks.mT if back else blocks).to(v.dtype))

    def moved(self, total: Tensor, x: Tensor, strength: float | Tensor) -> Tensor:
        flat = x.reshape(-1, self.size)
        if total is x and not isinstance(strength, Tensor):  # one pass: x (I + s (R - I))
            blocks = self._blocks(drop=True) * strength
            blocks = blocks + torch.eye(self.block, dtype=blocks.dtype, device=blocks.device)
            return turn_blocks(flat, blocks.to(x.dtype)).view(x.shape)
        return total + self.turned(flat, drop=True).view(x.shape) * strength

    @classmethod
    @torch.no_grad()
    def on_step(cls, adapters: Mapping[str, Any], step: int, steps: int) -> None:
        for adapter in adapters.values():
            if adapter.config.eps is not None:
                packed = adapter._parameters["skew"]
                packed.copy_(_bounded(packed, adapter.config.eps))


OFT.adapter = OFTAdapter
