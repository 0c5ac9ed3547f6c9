"""Subclasses of torch's layers with a forward of their own, where it can be found out what they compute.

Each is called once with small tensors in place of its own. A Linear that computes what Linear computes (Falcon's) is an
ordinary one. An Embedding that gives a multiple of what it looks up, ``y = c · E[ids]`` (Gemma, BART, M2M100, …), is a
site whose map of another weight is the class's own forward, whatever ``c`` is and in whatever dtype it is applied.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.adapters.sites.site import EmbeddingSite
from studio.errors import UnsupportedLayer

__all__ = ["ScaledEmbeddingSite", "computes_linear"]


def _called(base: type[nn.Module], module: nn.Module, tensors: Mapping[str, Tensor | None], x: Tensor) -> Tensor:
    """What a class computes with other tensors than those of ``module``, without its hosting and hooks."""
    twin = base.__new__(base)
    twin.__dict__.update(module.__dict__, _parameters=dict(tensors))
    return cast(Tensor, base.forward(twin, x))


def _takes_one(base: type[nn.Module]) -> bool:
    return len(inspect.signature(base.forward).parameters) == 2


@torch.no_grad()
def computes_linear(module: nn.Linear) -> bool:
    """Says whether a subclass of Linear computes ``x Wᵀ + b``.

    Example:
        >>> class Ours(nn.Linear):
        ...     def forward(self, x):
        ...         return x @ self.weight.T + self.bias
        >>> class Other(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).relu()
        >>> computes_linear(Ours(2, 2)), computes_linear(Other(2, 2))
        (True, False)
    """
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draw, device="cpu") for shape in ((4, 5), (3, 5), (3,)))
    has_bias = module._parameters.get("bias") is not None
    tensors = {"weight": weight, "bias": bias if has_bias else None}
    base = vars(type(module)).get("hosts", type(module))
    try:
        got = _called(base, module, tensors, x) if _takes_one(base) else None
    except Exception:  # whatever somebody else's class raises, it is no plain Linear
        return False
    wanted = F.linear(x, weight, tensors["bias"])
    return isinstance(got, Tensor) and got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-6)


class ScaledEmbeddingSite(EmbeddingSite):
    """An embedding whose class computes ``c · E[ids]``.

    Raises:
        UnsupportedLayer: its forward takes more than the ids, or is not a multiple of what it looks up.
    """

    __slots__ = ("base",)

    def __init__(self, path: str, module: nn.Embedding) -> None:
        super().__init__(path, module)
        self.base = type(module)
        if not (_takes_one(self.base) and self._is_multiple()):
            raise UnsupportedLayer(
                f"{path or 'the model'} is a {self.base.__name__}, an Embedding with a forward of its own; what an "
                "adapter would have to change in it is not known (exclude it, or use its parts)"
            )

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = _called(self.base, self.module, {"weight": weight}, x)
        return y if bias is None else y + bias

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        return _called(self.base, self.module, {"weight": down.t()}, x)

    @torch.no_grad()
    def _is_multiple(self) -> bool:
        """Whether two small tables come out multiplied by one number; not tried where that number has no value."""
        if any(buffer is not None and buffer.device.type == "meta" for buffer in self.module._buffers.values()):
            return True
        draw = torch.Generator().manual_seed(0)
        device = torch.device("cpu") if self.weight.device.type == "meta" else self.weight.device
        ids = torch.arange(min(8, self.cols), device=device)
        tables = [torch.rand(len(ids), 4, generator=draw, device="cpu").to(device) + 0.5 for _ in range(2)]
        try:
            ratios = torch.cat([_called(self.base, self.module, {"weight": table}, ids) / table for table in tables])
        except Exception:  # whatever somebody else's class raises, it is not this function
            return False
        return bool(ratios.isfinite().all()) and torch.allclose(ratios, ratios[:1, :1].expand_as(ratios))
