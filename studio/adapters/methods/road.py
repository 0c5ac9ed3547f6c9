"""RoAd: pairs of a layer's outputs are turned and scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites
from studio.adapters.sites.site import ConvSite, Site
from studio.errors import BadConfig, DoesNotFit

__all__ = ["RoAd", "RoAdAdapter"]


LARGEST: Final = 64
"""Size of the blocks where none is given, if it divides the layer."""


@METHODS.register("road")
@dataclass(frozen=True, kw_only=True)
class RoAd(AdapterConfig):
    r"""RoAd turns pairs of outputs: ``y' = R y``, that is ``W' = R W`` and ``b' = R b``.

    ``R`` takes the pair ``(y_i, y_j)`` to ``(α cos θ · y_i − α sin θ · y_j, α sin θ · y_i + α cos θ · y_j)``. In blocks
    of ``group`` outputs the first half is paired with the second. It starts at ``θ = 0``, ``α = 1``.

    Attributes:
        variant: 1 (one angle and scale per pair), 2 (one per output) or 4 (one per entry of ``R``), as in the paper.
        group: size of the blocks, an even number that divides the outputs of each layer; None: the largest power of two
            up to 64 that does.

    Raises:
        BadConfig: a field with an impossible value, or a group that does not divide a layer.

    References:
        3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability (Liao and Monz,
        2024), https://arxiv.org/abs/2409.00119

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.RoAd(group=2, targets=("0",))).parameters
        6
    """

    method = "road"
    rate = 5.0
    small: ClassVar[Mapping[str, Any]] = {"group": 2}
    variant: int = 1
    group: int | None = None

    def check(self) -> None:
        self.require(self.variant in (1, 2, 4), "variant", "1, 2 or 4")
        whole = self.group is None or (isinstance(self.group, int) and not isinstance(self.group, bool))
        sound = whole and (self.group is None or (self.group >= 2 and self.group % 2 == 0))
        self.require(sound, "group", "an even number, at least 2, or None")

    def group_at(self, site: Site) -> int:
        """Returns the size of the blocks at a layer.

        Raises:
            BadConfig: it does not divide the layer.
        """
        size = math.gcd(site.rows, LARGEST) if self.group is None else self.group
        if size > 1 and site.rows % size == 0:
            return size
        fitting = [number for number in range(2, site.rows + 1, 2) if site.rows % number == 0]
        near = sorted(sorted(fitting, key=lambda number: abs(number - size))[:5])
        hint = f"groups that do: {', '.join(map(str, near))}" if near else "an odd number has no pairs"
        raise BadConfig(
            f"RoAd(group={self.group}) does not divide the {site.rows} outputs of {site.path} ({hint}); take another "
            "group, or exclude the layer"
        )


VARIANTS: Final = ("road_1", "road_2", "road_4")


def _check_peft(config: Any) -> None:
    if config.variant not in VARIANTS:
        raise BadConfig(f"Invalid variant {config.variant} specified. Please choose from {', '.join(VARIANTS)}")
    if config.group_size % 2 or config.group_size < 2:
        raise BadConfig(f"The group_size must be divisible by 2 when using RoadLayer, but got {config.group_size}.")


def _check_layers(config: Any, sites: Sites) -> dict[str, Any]:
    for path, site in sites.items():
        if site.rows % config.group_size:
            raise BadConfig(
                f"The out_features of the base layer must be divisible by group_size ({config.group_size}) when using "
                f"RoadLayer. ({path} has {site.rows})"
            )
    return {}


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "variant": int(str(fields.get("variant", "road_1")).rpartition("_")[2]),
        "group": int(fields.get("group_size", LARGEST)),
    }


def _stated(config: RoAd, sites: Sites, layers: Layers) -> dict[str, Any]:
    sizes = sorted({config.group_at(site) for site in sites.values()})
    if len(sizes) > 1:
        raise DoesNotFit(
            f"PEFT's RoAd has one group for all layers, and these have {', '.join(map(str, sizes))}; save with "
            "format='diffusers', or train with a group that divides all of them"
        )
    return {"variant": f"road_{config.variant}", "group_size": sizes[0]}


class RoAdAdapter(Adapter[RoAd]):
    """RoAd on one site: ``theta`` and ``alpha``, block by block: ``(rows · variant / 2,)`` each."""

    trained = ("theta", "alpha")
    needs = ("theta", "alpha")
    peft = Peft(
        type="ROAD",
        settings=Settings(
            name="RoadConfig",
            defaults={"variant": "road_1", "group_size": LARGEST, "init_weights": True},
            chooses=("exclude_modules",),
            reads=("variant", "group_size"),
            check=_check_peft,
            config=_config_of_peft,
            new=_check_layers,
            state=_stated,
        ),
        tensors={"theta": "road_theta", "alpha": "road_alpha"},
        covers=("Linear",),
    )

    @classmethod
    def start(cls, site: Site, config: RoAd, given: Given) -> dict[str, Tensor]:
        config.group_at(site)
        count = site.rows * config.variant // 2
        return {"theta": torch.zeros(count), "alpha": torch.ones(count)}

    def fit(self) -> None:
        config = self.config
        for name in self.trained:
            self.require(name, (self.site.rows * config.variant // 2,))
        self.__dict__["pairs"] = config.group_at(self.site) // 2

    pairs: int

    def _entries(self) -> Tensor:
        """``(2, blocks, 2, group / 2)``: what multiplies an output itself, and what multiplies its partner."""
        theta, alpha = (cast(Tensor, self._parameters[name]) for name in self.trained)
        config = self.config
        shape = (-1, 2 if config.variant == 4 else 1, 1 if config.variant == 1 else 2, self.pairs)

        def make() -> Tensor:
            angles, scales = (tensor.view(shape).expand(-1, -1, 2, -1) for tensor in (theta, alpha))
            return torch.stack([scales[:, 0] * angles[:, 0].cos(), scales[:, -1] * angles[:, -1].sin()])

        return self.remembered(make, theta, alpha)

    def _turned(self, v: Tensor, strength: float = 1.0, *, whole: bool = False) -> Tensor:
        """Computes ``strength · v (R − I)ᵀ`` for rows ``(..., rows)``, and with ``whole`` adds ``v``."""
        own, other = self._entries()
        own = (own - 1) * strength + (1 if whole else 0)
        other = other if strength == 1.0 else other * strength
        (a, b), (p, q), (s, t) = (x.to(v.dtype).unbind(-2) for x in (v.unflatten(-1, own.shape), own, other))
        return torch.stack([a * p - b * s, b * q + a * t], dim=-2).flatten(-3)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        matrix = self.site.matrix(weight).to(next(self.parameters()).dtype)
        return Delta(self.site.shaped(self._turned(matrix.t()).t()), None if bias is None else self._turned(bias))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # the rows of a grouped convolution see other inputs: turning them is more than turning what they give
        if isinstance(self.site, ConvSite) and self.site.groups > 1:
            return super().change(x, y, weight, bias)
        return self._turned(y.movedim(self.site.axis, -1)).movedim(-1, self.site.axis)

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        if total is not y or self.site.axis != -1:
            return super().act(total, x, y, weight, bias, strength)
        return self._turned(y, strength, whole=True)


RoAd.adapter = RoAdAdapter
