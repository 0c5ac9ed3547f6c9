"""MoRA: a high-rank change of the weight from one square matrix, without any other trained factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Peft
from studio.adapters.contract.rotation import FLAT
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit

__all__ = ["MoRA", "MoRAAdapter"]


@METHODS.register("mora")
@dataclass(frozen=True, kw_only=True)
class MoRA(AdapterConfig):
    r"""MoRA changes a layer by a square matrix: ``W' = W + decompress · core · compress``.

    ``core`` is ``(n, n)`` with ``n = int(√((rows + cols) rank) + 0.5)``: as many numbers as a LoRA of that rank, and a
    change of rank up to ``n``. The input ``x``, continued with its own head to a multiple of ``n``, is cut into groups
    ``x_g`` of ``n`` numbers:

    - ``type=1`` (sharing): ``core · Σ_g x_g``, repeated to ``rows`` outputs;
    - ``type=6`` (rotation): ``core · rope(x_g, g)`` of every group, side by side, cut or repeated to ``rows`` outputs;
      ``rope`` turns the pair ``(x_i, x_{i + n/2})`` by the angle ``g · 10000^(−2i/n)``; ``n`` is rounded down to even.

    Attributes:
        rank: of the LoRA that has as many numbers, at least 1.
        type: 1 or 6, the numbers of the authors' code.
        dropout: probability in [0, 1) with which inputs are dropped while training.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning (Jiang et al., 2024),
        https://arxiv.org/abs/2405.12130

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> studio.attach(model, studio.MoRA(rank=1, targets=("0",))).parameters
        16
    """

    method = "mora"
    rate = 0.3
    small: ClassVar[Mapping[str, Any]] = {"rank": 2}
    rank: int = 8
    type: int = 6
    dropout: float = 0.0

    def check(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        self.require(whole and self.rank >= 1, "rank", "a whole number, at least 1")
        self.require(self.type in (1, 6), "type", "1 (sharing) or 6 (rotation)")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")


class MoRAAdapter(Adapter[MoRA]):
    """MoRA on one site: ``core`` ``(n, n)``."""

    trained = ("core",)
    needs = ("core",)
    peft = Peft(tensors={"core": "mora_core"})  # PEFT has no such method

    @classmethod
    def start(cls, site: Site, config: MoRA, given: Given) -> dict[str, Tensor]:
        size = int(math.sqrt((site.rows + site.cols) * config.rank) + 0.5)
        size = max(2, size // 2 * 2) if config.type == 6 else size
        return {"core": torch.zeros(size, size)}

    def fit(self) -> None:
        size = self.require("core", (None, None)).shape[0]
        self.require("core", (size, size))
        if self._turns and size % 2:
            raise DoesNotFit(
                f"MoRA at {self.site.path}: type=6 turns pairs of numbers, and its core is {size} x {size}; an odd "
                "core is of type=1"
            )

    @property
    def _turns(self) -> bool:
        return self.config.type == 6

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def _core(self) -> Tensor:
        return cast(Tensor, self._parameters["core"])

    @property
    def _count(self) -> int:
        """Number of groups that the input is cut into, as far as they reach the output."""
        size = self._core().shape[0]
        count = math.ceil(self.site.cols / size)
        return min(count, math.ceil(self.site.rows / size)) if self._turns else count

    def _angles(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for every group and pair, ``(g, n / 2)``."""
        half = self._core().shape[0] // 2
        place, step = (torch.arange(count, dtype=torch.float64, device="cpu") for count in (self._count, half))
        angles = place[:, None] * 10000.0 ** (-step / half)
        return angles.cos().to(like), angles.sin().to(like)

    def _compressed(self, x: Tensor) -> Tensor:
        """What the core multiplies, ``(t, n)`` or ``(t, g, n)``, of rows ``(t, cols)``."""
        size, cols, count = self._core().shape[0], self.site.cols, self._count
        whole, rest = divmod(max(0, count * size - cols), cols)
        heads = [x] * whole + ([x[:, :rest]] if rest else [])
        groups = torch.cat([x, *heads], dim=1)[:, : count * size].unflatten(1, (count, size))
        if not self._turns:
            return groups.sum(1)
        cos, sin = self._angles(x)
        left, right = groups.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def _decompressed(self, h: Tensor) -> Tensor:
        """Repeats ``(t, n)`` or ``(t, g·n)`` to ``(t, rows)``."""
        whole, rest = divmod(self.site.rows, h.shape[1])
        return torch.cat([h] * whole + ([h[:, :rest]] if rest else []), dim=1)

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        core, cols, count = self._core(), self.site.cols, self._count
        size = core.shape[0]
        places = (torch.arange(count * size, device=core.device) % cols).view(count, size)
        if self._turns:
            (left, right), (cos, sin) = core.chunk(2, dim=1), (part[:, None] for part in self._angles(core))
            parts = torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)  # (g, n, n)
            change = core.new_zeros(count, size, cols)
            change = change.scatter_add(2, places[:, None].expand(-1, size, -1), parts).flatten(0, 1)
        else:
            change = core.new_zeros(size, cols).index_add(1, places.flatten(), core.repeat(1, count))
        return Delta(self.site.shaped(self._decompressed(change.t()).t()))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = self.dropped(x)
        if self.site.kind not in FLAT:
            return super().change(x, y, weight, bias)
        h = self._compressed(x.reshape(-1, self.site.cols))
        h = (h.reshape(-1, h.shape[-1]) @ self._core().t().to(x.dtype)).view(h.shape)
        return self._decompressed(h.flatten(1)).view(y.shape)


MoRA.adapter = MoRAAdapter
