"""QA-LoRA: a low-rank change that sees its input pooled over groups of columns, so that zero points can hold it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Factors, Given
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Tables
from studio.adapters.contract.ranked import FactorAdapter, FactorConfig
from studio.adapters.contract.starts import grown_pair
from studio.adapters.methods.lora import FIELDS, PAIR, SETTINGS, LoRA
from studio.adapters.sites.site import LAYERS, Site
from studio.errors import BadConfig, UnsupportedLayer, nearest

__all__ = ["QALoRA", "QALoRAAdapter"]

POOLINGS: Final = ("sum", "mean", "groups")
"""What becomes of the inputs of a group: their sum (the paper), their mean (the authors' program), or their mean times
the number of groups (PEFT)."""


@METHODS.register("qalora")
@dataclass(frozen=True, kw_only=True)
class QALoRA(FactorConfig):
    r"""QA-LoRA changes all weights of a group of columns alike: ``W' = W + s · spread(up @ down)``.

    ``down`` reads an input pooled over groups of ``group`` columns; so ``ΔW`` is constant in each group, and a base
    that is quantised in groups of that size (or a divisor of it) takes it into its zero points: :func:`studio.bake`
    changes nothing else there. It acts on any other layer too.

    Attributes:
        group: columns in a group; it divides the layer's.
        pooling: ``"sum"`` of the inputs of a group (the paper), their ``"mean"`` (the authors' program), or
            ``"groups"``: the mean times the number of groups (PEFT). It only changes the size of ``up @ down``.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models (Xu et al., 2023),
        https://arxiv.org/abs/2309.14717

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6))
        >>> studio.attach(model, studio.QALoRA(rank=2, group=4, targets=("0",))).parameters
        16
    """

    method = "qalora"
    small: ClassVar[Mapping[str, Any]] = {"rank": 2, "group": 2}
    group: int = 32
    pooling: str = "sum"

    def check(self) -> None:
        super().check()
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        self.require(whole and self.group >= 1, "group", "a whole number, at least 1")
        if self.pooling not in POOLINGS:
            close = nearest(str(self.pooling), POOLINGS, 1)[0]
            raise BadConfig(f"QALoRA(pooling={self.pooling!r}): did you mean {close!r}? (of {', '.join(POOLINGS)})")

    def groups(self, site: Site) -> int:
        """Returns the number of groups of columns of a layer.

        Raises:
            BadConfig: the group does not divide them.
        """
        if site.cols % self.group:
            raise BadConfig(
                f"QALoRA(group={self.group}) does not divide the {site.cols} columns of {site.path}; use a group that "
                "does, or exclude this layer"
            )
        return site.cols // self.group

    def weight_of_one(self, site: Site) -> float:
        """Returns what one column counts in the pooled input of its group."""
        return {"sum": 1.0, "mean": 1 / self.group, "groups": self.groups(site) / self.group}[self.pooling]


def spread(matrix: Tensor, group: int) -> Tensor:
    """Repeats every column ``group`` times: ``(n, groups)`` to ``(n, groups · group)``."""
    return matrix[:, :, None].expand(*matrix.shape, group).reshape(matrix.shape[0], -1)


def _as_lora(config: QALoRA, layers: Layers) -> tuple[LoRA, Tables]:
    """The same function as a LoRA, for programs that know no pooling; ``config`` has PEFT's pooling."""
    made = {}
    for path, tensors in layers.items():
        share = tensors["down"].shape[1] / config.group
        made[path] = {"down": spread(tensors["down"], config.group), "up": tensors["up"] * share}
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(FactorConfig)}
    return LoRA(**fields), made


def _limit(site: Site) -> str:
    return "" if site.kind == "linear" else "PEFT has QA-LoRA on Linear layers alone"


class QALoRAAdapter(FactorAdapter[QALoRA]):
    """QA-LoRA on one site: ``down`` ``(r, cols / group)``, ``up`` ``(rows, r)``."""

    trained = ("down", "up")
    kinds = tuple(kind for kind in LAYERS if kind != "embedding")  # ids are no numbers that could be summed
    needs = ("down", "up")
    ranks = ("down",)
    peft = Peft(
        type="LORA",
        additive=True,
        settings=dataclasses.replace(
            SETTINGS, fields={**FIELDS, "group": "qalora_group_size"}, flags={"use_qalora": True}
        ),
        tensors=PAIR,
        layouts={"up": "spread"},
        fixed={"pooling": "groups"},
        limit=_limit,
        diffusers=True,
    )
    lycoris = Lycoris(form=_as_lora)

    @classmethod
    def start(cls, site: Site, config: QALoRA, given: Given) -> dict[str, Tensor]:
        if site.kind == "embedding":
            raise UnsupportedLayer(
                f"QALoRA cannot act on {site.path}: the inputs are token ids, which cannot be summed; exclude it"
            )
        rank, groups = config.rank_at(site.path), config.groups(site)
        if rank > min(site.rows, groups):
            raise BadConfig(
                f"QALoRA(rank={rank}) is larger than the layer {site.path} ({site.rows} x {groups} groups of columns); "
                "use a lower rank, a smaller group, or exclude it"
            )
        bound = 1 / math.sqrt(groups)
        down = torch.empty(rank, groups).uniform_(-bound, bound, generator=given.generator)
        return {"down": down, "up": torch.zeros(site.rows, rank)}

    def fit(self) -> None:
        config = self.config
        rank = self.require("down", (None, config.groups(self.site))).shape[0]
        self.require("up", (self.site.rows, rank))
        self.__dict__["scale"] = config.scale_at(self.site.path)
        self.__dict__["share"] = config.weight_of_one(self.site)
        self.__dict__["group"] = config.group

    share: float
    group: int

    def factors(self) -> Factors:
        down, up = self._parameters["down"], self._parameters["up"]
        assert down is not None and up is not None
        return Factors(spread(down, self.group).view(-1, *self.site.inner_shape), up, self.scale * self.share)

    def grown(self, rank: int, generator: torch.Generator) -> tuple[QALoRA, dict[str, Tensor]]:
        return grown_pair(self, rank, generator)

    @classmethod
    def to_save(cls, config: QALoRA, layers: Layers) -> tuple[QALoRA, Tables]:
        """Gives it PEFT's pooling; the difference goes into ``up``."""
        made = {path: dict(tensors) for path, tensors in layers.items()}
        if config.pooling != "groups":
            for tensors in made.values():
                count = tensors["down"].shape[1]
                tensors["up"] = tensors["up"] * ((config.group if config.pooling == "sum" else 1) / count)
        return dataclasses.replace(config, pooling="groups"), made

    def by_group(self, group: int) -> Tensor | None:
        if self.group % group:
            return None
        down, up = self._parameters["down"], self._parameters["up"]
        assert down is not None and up is not None
        return spread((up * (self.scale * self.share)) @ down, self.group // group)


QALoRA.adapter = QALoRAAdapter
