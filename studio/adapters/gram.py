"""Inner products of what adapters change: the Gram matrix ``G_ij = ⟨Δ_i, Δ_j⟩`` of every layer.

``Δ_i`` is the change ``(ΔW_i, Δb_i)`` of adapter ``i`` at strength 1, as one long vector. A factor pair is never
multiplied out: ``⟨U_1 D_1, U_2 D_2⟩ = tr(U_1ᵀ U_2 · D_2 D_1ᵀ)``, from products as small as the ranks, for all layers of
one shape at once. Other methods give their delta, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.contract.change import change_of
from studio.adapters.sites.site import Site
from studio.device import has_dtype

__all__ = ["Carried", "grams"]

Carried = tuple[Site, Mapping[int, Adapter]]
"""A layer, and the adapters that it carries, by their number in the Gram matrix."""
_AT_ONCE: Final = 8 << 20  # numbers of factors that are multiplied at once


@torch.no_grad()
def grams(layers: Sequence[Carried], count: int, *, exact: bool = True) -> Tensor:
    """Returns the Gram matrix of every layer, ``(layers, count, count)`` in fp64 on the CPU.

    Args:
        layers: the layers, with the adapters to compare. count: how many adapters there are, over all layers.
        exact: whether pairs are multiplied in fp64, where the device has it; else in fp32.

    Raises:
        DoesNotFit: a weight that a method's change is made of is offloaded, or not at hand.
    """
    found = torch.zeros(len(layers), count, count, dtype=torch.float64)
    read = [{i: one(type(one).factors) for i, one in own.items() if one.fused} for _, own in layers]
    for alike in _alike(read):
        _add_pairs(found, alike, [read[place] for place in alike], exact)
    for place, (site, own) in enumerate(layers):
        rest = {i: one for i, one in own.items() if not one.fused}
        if rest or any(pair.bias is not None for pair in read[place].values()):
            _add_rest(found[place], site, rest, read[place])
    return found


def _alike(read: Sequence[Mapping[int, Factors]]) -> Iterator[list[int]]:
    """Places of layers whose pairs are of the same shapes and on one device, a bounded number of them at a time."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, pairs in enumerate(read):
        if pairs:
            shapes = ((i, pair.down.shape, pair.up.shape, pair.down.device) for i, pair in pairs.items())
            groups.setdefault(tuple(shapes), []).append(place)
    for places in groups.values():
        size = sum(pair.down.numel() + pair.up.numel() for pair in read[places[0]].values())
        most = max(1, _AT_ONCE // size)
        for first in range(0, len(places), most):
            yield places[first : first + most]


def _add_pairs(found: Tensor, places: list[int], read: list[Mapping[int, Factors]], exact: bool) -> None:
    """Adds ``tr(U_iᵀ U_j · D_j D_iᵀ)`` of layers whose pairs are of the same shapes."""
    numbers = list(read[0])
    dtype = _wide(read[0][numbers[0]].up) if exact else torch.float32
    ups, downs, ranks = [], [], []
    for i in numbers:
        up, down = torch.stack([pairs[i].up for pairs in read]), torch.stack([pairs[i].down for pairs in read])
        scales = torch.tensor([pairs[i].scale for pairs in read], device=up.device).to(dtype)
        ups.append(up.to(dtype) * scales.reshape(-1, *(1,) * (up.dim() - 1)))
        downs.append(down.flatten(up.dim() - 1).to(dtype))
        ranks.append(up.shape[-1])
    up, down = torch.cat(ups, dim=-1), torch.cat(downs, dim=-2)
    products = (up.mT @ up) * (down @ down.mT)
    products = products.flatten(1, -3).sum(1) if products.dim() > 3 else products  # over experts
    owner = torch.eye(len(numbers), dtype=up.dtype, device=up.device)
    owner = owner.repeat_interleave(torch.tensor(ranks, device=up.device), dim=0)
    _add(found, places, numbers, owner.t() @ products @ owner)


def _add_rest(gram: Tensor, site: Site, adapters: Mapping[int, Adapter], pairs: Mapping[int, Factors]) -> None:
    """Adds what methods that are no pairs change at one layer, by themselves and against the pairs; and all biases."""
    deltas = {i: change_of(site, one) for i, one in adapters.items()}
    weights = {i: site.matrix(delta.weight) for i, delta in deltas.items() if delta.weight is not None}
    biases = {i: delta.bias for i, delta in deltas.items() if delta.bias is not None}
    for i, weight in weights.items():
        weights[i] = weight.to(_wide(weight))
        for j, pair in pairs.items():
            up, down = pair.up.to(weights[i]) * pair.scale, pair.down.flatten(pair.up.dim() - 1).to(weights[i])
            gram[i, j] = gram[j, i] = gram[i, j] + ((up.mT @ weights[i]) * down).sum().cpu()
    biases |= {i: pair.bias * pair.scale for i, pair in pairs.items() if pair.bias is not None}
    for tensors in (weights, biases):
        if tensors:
            flat = torch.stack([tensor.flatten() for tensor in tensors.values()])
            flat = flat.to(_wide(flat))
            _add(gram[None], [0], list(tensors), (flat @ flat.t())[None])


def _add(found: Tensor, places: list[int], numbers: list[int], part: Tensor) -> None:
    """Adds ``part`` ``(places, numbers, numbers)`` where it belongs."""
    layers, adapters = torch.tensor(places), torch.tensor(numbers)
    found[layers[:, None, None], adapters[:, None], adapters] += part.to("cpu", torch.float64)


def _wide(tensor: Tensor) -> torch.dtype:
    """The widest type that the device of a tensor (of any shape) computes in."""
    return torch.float64 if has_dtype(torch.float64, tensor.device) else torch.float32
