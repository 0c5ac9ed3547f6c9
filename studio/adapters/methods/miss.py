"""MiSS: all shards of a weight's columns share one trained matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Factors, Given
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites
from studio.adapters.contract.ranked import allows_any_rank
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig

__all__ = ["MiSS", "MiSSAdapter"]

FORMS: Final = ("shared", "bat", "mini")


@METHODS.register("miss")
@dataclass(frozen=True, kw_only=True)
class MiSS(AdapterConfig):
    r"""MiSS repeats one matrix over the columns: ``W'[:, j] = W[:, j] + D[j mod rank, :]`` with ``D`` ``(rank, rows)``.

    So the change costs one sum of the inputs in groups, ``x -> Σ_g x[g · rank : (g + 1) · rank]``, and one product.

    Attributes:
        rank: rows of ``D``, >= 1, and at most the columns of each layer.
        form: "shared" is the above. "mini" has ``mini`` columns of ``D``, repeated over the rows. "bat" multiplies too:
            with the weight in blocks ``W_og`` of ``rank x rank``, ``W'_og = W_og + W_og D_o + D_o`` and ``D``
            ``(rows / rank, rank, rank)``; rank divides both sides of each layer.
        mini: columns of ``D`` for "mini", a divisor of the rows of each layer; None otherwise.
        dropout: probability in [0, 1) with which inputs are dropped while training; not for "bat".

    Raises:
        BadConfig: a field with an impossible value, or one that does not fit a layer.

    References:
        MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure (Kang and Yin, 2024),
        https://arxiv.org/abs/2409.15371

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.MiSS(rank=2, targets=("0",))).parameters
        12
    """

    method = "miss"
    rate = 0.5
    small: ClassVar[Mapping[str, Any]] = {"rank": 2}
    rank: int = 64
    form: str = "shared"
    mini: int | None = None
    dropout: float = 0.0

    def check(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")
        self.require(self.form in FORMS, "form", f"one of {', '.join(FORMS)}")
        whole = isinstance(self.mini, int) and not isinstance(self.mini, bool)
        sound = whole and cast(int, self.mini) >= 1 if self.form == "mini" else self.mini is None
        self.require(sound, "mini", "a whole number, at least 1, with form='mini', and left out with any other")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")
        self.require(self.form != "bat" or not self.dropout, "dropout", "0 with form='bat', which changes the weight")


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT names the form by its start, and has an ``mini_r`` whatever the form is."""
    form = fields.get("init_weights")
    form = form if form in ("bat", "mini") else "shared"
    return {"form": form, "mini": fields.get("mini_r", 1) if form == "mini" else None}


def _stated(config: MiSS, sites: Sites, layers: Layers) -> dict[str, Any]:
    return {"init_weights": True if config.form == "shared" else config.form, "mini_r": config.mini or 1}


class MiSSAdapter(Adapter[MiSS]):
    """MiSS on one site: ``block``, the ``D`` of its form, ``(rank, rows)``, ``(rank, mini)`` or ``(n, rank, rank)``."""

    trained = ("block",)
    needs = ("block",)
    peft = Peft(
        type="MISS",
        additive=True,
        settings=Settings(
            name="MissConfig",
            defaults={"r": 64, "miss_dropout": 0.0, "mini_r": 1, "bias": "none", "init_weights": True},
            fields={"rank": "r", "dropout": "miss_dropout"},
            reads=("init_weights", "mini_r"),
            config=_config_of_peft,
            state=_stated,
        ),
        tensors={"block": "miss_block"},
        covers=("Linear",),
    )

    @classmethod
    def start(cls, site: Site, config: MiSS, given: Given) -> dict[str, Tensor]:
        return {"block": torch.zeros(_shape(site, config))}

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        block = next(iter(layers.values()))["block"]
        return {"rank": block.shape[-1], "form": "bat"} if block.dim() == 3 else {"rank": block.shape[0]}

    def fit(self) -> None:
        site, config = self.site, self.config
        block = self.require("block", _shape(site, config))
        self.__dict__["fused"] = config.form != "bat"
        if self.fused:
            groups = -(-site.cols // config.rank)
            down = torch.eye(config.rank, device=block.device).repeat(1, groups)[:, : site.cols]
            self.keep("down", down.reshape(config.rank, *site.inner_shape).contiguous())

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def factors(self) -> Factors:
        block, down = cast(Tensor, self._parameters["block"]), cast(Tensor, self._buffers["down"])
        return Factors(down, block.repeat(1, self.site.rows // block.shape[1]).t().contiguous(), 1.0)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        site, rank = self.site, self.config.rank
        if self.fused:
            down, up, _, _ = self.factors()
            return Delta(site.shaped(up @ down.flatten(1).to(up.dtype)))
        block = cast(Tensor, self._parameters["block"])
        blocks = site.matrix(weight).to(block.dtype).reshape(site.rows // rank, rank, site.cols // rank, rank)
        change = torch.einsum("oagc,ocb->oagb", blocks, block) + block[:, :, None, :]
        return Delta(site.shaped(change.reshape(site.rows, site.cols)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.fused:
            return super().change(x, y, weight, bias)
        down, up, _, _ = self.factors()
        return self.site.low_rank(self.dropped(x), down.to(y.dtype), up.to(y.dtype))

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return not bool(cast(Tensor, self._parameters["block"]).count_nonzero())


def _shape(site: Site, config: MiSS) -> tuple[int, ...]:
    """Shape of ``D`` at a layer.

    Raises:
        BadConfig: the config does not fit the layer.
    """
    rank, sides = config.rank, f"the {site.rows} x {site.cols} of {site.path}"
    if rank > site.cols and not allows_any_rank():
        raise BadConfig(
            f"MiSS(rank={rank}) is larger than {sides} allows; use a rank of at most {site.cols}, or exclude the layer"
        )
    if config.form == "bat":
        if site.rows % rank or site.cols % rank:
            raise BadConfig(
                f"MiSS(form='bat', rank={rank}) does not divide both sides of {sides}; take another rank, or exclude "
                "the layer"
            )
        return site.rows // rank, rank, rank
    if config.mini is not None and site.rows % config.mini:
        raise BadConfig(
            f"MiSS(mini={config.mini}) does not divide the rows of {sides}; take another number, or exclude the layer"
        )
    return rank, config.mini or site.rows


MiSS.adapter = MiSSAdapter
