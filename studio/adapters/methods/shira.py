"""SHiRA: a few entries of the weight are trained, wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.coverage import USUAL_TARGETS
from studio.adapters.contract.foreign import Peft, Settings
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit

__all__ = ["SHiRA", "SHiRAAdapter"]


@METHODS.register("shira")
@dataclass(frozen=True, kw_only=True)
class SHiRA(AdapterConfig):
    r"""SHiRA trains a sparse change of high rank: ``W'[i, j] = W[i, j] + values[k]`` at the places ``k -> (i, j)``.

    The places are drawn at random, once; there are ``rank · (rows + cols)`` of them, as many as a LoRA of that rank
    has numbers.

    Attributes:
        rank: how many numbers are trained, in LoRA's measure, >= 1.
        key: seed of the places, the same for layers of one shape, as PEFT's ``random_seed``; None: each layer draws its
            own from the seed that the adapter is attached with. Files hold the places.

    Raises:
        BadConfig: a field with an impossible value, or a rank with more places than a layer has.

    References:
        Rapid Switching and Multi-Adapter Fusion via Sparse High Rank Adapters (Bhardwaj et al., 2024),
        https://arxiv.org/abs/2406.13175

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.SHiRA(rank=1, targets=("0",))).parameters
        10
    """

    method = "shira"
    rate = 3.0
    small: ClassVar[Mapping[str, Any]] = {"rank": 1}
    rank: int = 32
    key: int | None = None

    def check(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")
        whole = isinstance(self.key, int) and not isinstance(self.key, bool)
        self.require(self.key is None or (whole and 0 <= self.key < 2**63), "key", "a whole number in [0, 2**63)")


class SHiRAAdapter(Adapter[SHiRA]):
    """SHiRA on one site: ``values`` ``(n,)`` at ``places`` ``(2, n)``, rows and columns of the matrix form."""

    trained = ("values",)
    frozen = ("places",)
    whole_numbers = ("places",)
    needs = ("values", "places")
    peft = Peft(
        type="SHIRA",
        settings=Settings(
            name="ShiraConfig",
            defaults={
                "r": 32, "mask_type": "random", "random_seed": None, "fan_in_fan_out": False, "init_weights": True,
            },
            chooses=(),
            fields={"rank": "r", "key": "random_seed"},
            beside=("mask_type",),
            targets={**USUAL_TARGETS, "phi": ("q_proj", "v_proj")},
        ),
        tensors={"values": "shira_weight", "places": "shira_indices"},
        covers=("Linear",),
    )  # fmt: skip

    @classmethod
    def start(cls, site: Site, config: SHiRA, given: Given) -> dict[str, Tensor]:
        size, count = site.rows * site.cols, config.rank * (site.rows + site.cols)
        if count > size:
            most = size // (site.rows + site.cols)
            hint = f"use a rank of at most {most}, or exclude the layer" if most else "exclude the layer"
            raise BadConfig(
                f"SHiRA(rank={config.rank}) trains {count} numbers, and {site.path} ({site.rows} x {site.cols}) has "
                f"{size}; {hint}"
            )
        generator = given.generator if config.key is None else torch.Generator().manual_seed(config.key)
        flat = torch.randperm(size, generator=generator)[:count].sort().values
        return {"values": torch.zeros(count), "places": torch.stack([flat // site.cols, flat % site.cols]).int()}

    def fit(self) -> None:
        count = self.require("values", (None,)).shape[0]
        places = self.require("places", (2, count)).to(torch.int32)
        self._buffers["places"] = places
        if places.device.type != "meta" and count:
            most = torch.tensor([[self.site.rows], [self.site.cols]], device=places.device)
            if bool(((places < 0) | (places >= most)).any()):
                raise DoesNotFit(
                    f"SHiRA at {self.site.path}: 'places' names entries that its weight ({self.site.rows} x "
                    f"{self.site.cols}) does not have"
                )

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        values, places = cast(Tensor, self._parameters["values"]), cast(Tensor, self._buffers["places"])

        def make() -> Tensor:
            rows, cols = places.long()
            return values.new_zeros(self.site.rows, self.site.cols).index_put((rows, cols), values)

        return Delta(self.site.shaped(self.remembered(make, values, places)))

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return not bool(cast(Tensor, self._parameters["values"]).count_nonzero())


SHiRA.adapter = SHiRAAdapter
