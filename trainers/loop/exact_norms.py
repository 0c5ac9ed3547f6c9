"""Norms in fp32 while a quantised base of half precision is trained, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters.sites.norm import is_norm
from studio.quantization.counting import packed_layers

__all__ = ["ExactNorms"]

_HALVES = (torch.float16, torch.bfloat16)


class ExactNorms:
    """Lets the norms of quantised modules compute in fp32: their weights, what they are given, what they sum up.

    What they give is of the type that they were given, so that no other layer sees a difference of types. Modules
    without quantised layers, and norms in fp32 already, stay as they are.

    Args:
        modules: the base's components.

    Attributes:
        count: how many norms compute so.

    Example:
        >>> ExactNorms([nn.Sequential(nn.LayerNorm(4, dtype=torch.bfloat16))]).count
        0
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._hooks: list[Any] = []
        self.count = 0
        for root in modules:
            if next(packed_layers(root), None) is not None:
                for module in root.modules():
                    self._widen(module)

    def _widen(self, norm: nn.Module) -> None:
        own = {name: held for name, held in norm._parameters.items() if held is not None and held.dtype in _HALVES}
        if not own or not is_norm(norm):
            return
        for name, held in own.items():
            self._held.append((norm, name, held))
            norm._parameters[name] = nn.Parameter(held.detach().float(), requires_grad=held.requires_grad)
        self._hooks += [norm.register_forward_pre_hook(_widened), norm.register_forward_hook(_narrowed)]
        self.count += 1

    def give_back(self) -> None:
        """Puts the norms' own weights back, and takes the hooks off."""
        for norm, name, held in self._held:
            norm._parameters[name] = held
        for hook in self._hooks:
            hook.remove()
        self._held.clear()
        self._hooks.clear()


def _widened(norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    norm.__dict__["_given_type"] = args[0].dtype
    return (args[0].float(), *args[1:])


def _narrowed(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(norm.__dict__.pop("_given_type"))
