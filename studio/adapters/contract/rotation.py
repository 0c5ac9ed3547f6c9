"""Rotations: methods that turn the weight by an orthogonal matrix, instead of adding to it.

``R`` turns what flows through the layer: its inputs, ``f(x) = W (x R) + b``, that is ``W' = W Rᵀ`` in matrix form, or
its outputs, ``f(x) = (W x) R + b``, that is ``W' = Rᵀ W`` (an embedding has one-hot inputs, so its outputs are turned).
A *gain* may multiply every row of the result.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, AdapterConfig, Delta
from studio.adapters.contract.foreign import Layers, Sites, Tables
from studio.adapters.contract.pattern import exactly, matches
from studio.adapters.sites.site import ConvSite, Site
from studio.errors import BadConfig, DoesNotFit

__all__ = [
    "Rotation",
    "block_size_at",
    "blocks_of_peft",
    "cayley",
    "from_lycoris",
    "nearest_divisor",
    "packed",
    "packed_size",
    "shown_blocks",
    "skew",
    "to_lycoris",
    "turn_blocks",
]

Config = TypeVar("Config", bound=AdapterConfig)

FLAT = ("linear", "conv1d-gpt2")


class Rotation(Adapter[Config]):
    """A rotation on one site.

    A method defines :meth:`turned`; the rotation has as many rows as the side that it turns.
    """

    outputs: bool = False
    """Whether the outputs are turned."""

    @property
    def size(self) -> int:
        """Length of what is turned."""
        return self.site.rows if self.outputs else self.site.cols

    @abstractmethod
    def turned(self, v: Tensor, *, back: bool = False, drop: bool = False) -> Tensor:
        """Computes ``v (R - I)``, or ``v (Rᵀ - I)``.

        Args:
            v: rows that are turned, ``(n, size)``. back: turn them by ``Rᵀ``.
            drop: leave parts of the rotation out where the method drops while it trains.
        """

    @property
    def dropping(self) -> bool:
        """Whether parts of the rotation are left out now."""
        return self.dropout > 0 and self.training and self.trainable

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        return self._delta(weight, drop=False)

    def _delta(self, weight: Tensor, *, drop: bool) -> Delta:
        matrix = self.site.matrix(weight).to(next(self.parameters()).dtype)
        if self.outputs:
            change = self.turned(matrix.t(), drop=drop).t()
        else:
            change = self.turned(matrix, back=True, drop=drop)
        gain = self._parameters.get("gain")
        if gain is not None:
            change = gain[:, None] * change + (gain - 1)[:, None] * matrix
        return Delta(self.site.shaped(change))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        site, gain = self.site, self._parameters.get("gain")
        # rows of a grouped convolution see other inputs: turning them is more than turning what they give
        on_outputs = self.outputs and not (isinstance(site, ConvSite) and site.groups > 1)
        if not (on_outputs or site.kind in FLAT):
            return site.apply(x, cast(Tensor, self._delta(weight, drop=True).weight).to(y.dtype), None)
        plain = y if bias is None else y - site.over_outputs(bias.to(y.dtype))
        if on_outputs:
            rows = plain.movedim(site.axis, -1)
            change = self.turned(rows.reshape(-1, site.rows), drop=True).view(rows.shape).movedim(-1, site.axis)
        else:
            change = site.apply(self.turned(x.reshape(-1, site.cols), drop=True).view(x.shape), weight, None)
        if gain is None:
            return change
        factor = site.over_outputs(gain.to(y.dtype))
        return torch.addcmul(plain * (factor - 1), change, factor)

    def keeps(self, *shape: int) -> Tensor | None:
        """Draws which blocks of a rotation stay, ``(*shape, 1, 1)``; None while nothing is dropped."""
        return (torch.rand(*shape, 1, 1, device="cpu") >= self.dropout) if self.dropping else None


def skew(packed: Tensor, size: int) -> Tensor:
    """Makes skew-symmetric matrices ``(..., b, b)`` from what is above their diagonals.

    Args:
        packed: these entries, ``(..., b (b - 1) / 2)``.
        size: ``b``.

    Example:
        >>> skew(torch.tensor([5.0]), 2)
        tensor([[ 0.,  5.],
                [-5.,  0.]])
    """
    rows, cols = torch.triu_indices(size, size, 1, device=packed.device)
    matrix = packed.new_zeros(*packed.shape[:-1], size, size)
    matrix[..., rows, cols] = packed
    return matrix - matrix.mT


def cayley(q: Tensor, terms: int | None = None) -> Tensor:
    """Computes ``R - I`` for the rotation ``R = (I + Q)(I - Q)⁻¹`` of skew-symmetric ``Q`` ``(..., b, b)``.

    Args:
        q: the matrices ``(..., b, b)``.
        terms: None for the exact rotation; a number >= 2 for that many terms of its series, ``I + 2Q + 2Q² + … +
            Q^(terms - 1)``, which is orthogonal only nearly.

    References:
        OFT v2 (Qiu et al., 2025), https://arxiv.org/abs/2506.19847, for the series

    Example:
        >>> turned = cayley(skew(torch.tensor([1.0]), 2)) + torch.eye(2)  # a quarter turn: tan(45°) = 1
        >>> turned
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    if q.dtype in (torch.float16, torch.bfloat16):  # solving needs more
        q = q.float()
    if terms is None:
        return torch.linalg.solve(torch.eye(q.shape[-1], dtype=q.dtype, device=q.device) - q, 2 * q)
    power, total = q, q * (1 if terms == 2 else 2)
    for exponent in range(2, terms):
        power = power @ q
        total = torch.add(total, power, alpha=1 if exponent == terms - 1 else 2)
    return total


def turn_blocks(v: Tensor, blocks: Tensor) -> Tensor:
    """Multiplies the ``k`` parts of each row by a matrix of its own, or all by the same.

    Args:
        v: the rows ``(n, k·b)``.
        blocks: the matrices ``(k, b, b)``, or one ``(1, b, b)``.
    """
    size = blocks.shape[-1]
    if blocks.shape[0] == 1:
        return (v.reshape(-1, size) @ blocks[0]).view(v.shape)
    if size < WIDE:
        blocks = _widened(blocks)
    parts = v.unflatten(-1, (-1, blocks.shape[-1]))
    return torch.einsum("...kb,kbc->...kc", parts, blocks).reshape(v.shape)


WIDE: Final = 32
"""Smaller blocks are multiplied several at a time, as one block with zeros: faster, for all the zeros."""


def _widened(blocks: Tensor) -> Tensor:
    """Puts neighbouring blocks ``(k, b, b)`` into block-diagonal ones ``(k/m, m·b, m·b)``."""
    count, size, _ = blocks.shape
    many = max(number for number in range(1, max(2, WIDE // size + 1)) if count % number == 0)
    wide = blocks.new_zeros(count // many, many, size, many, size)
    place = torch.arange(many, device=blocks.device)
    wide[:, place, :, place] = blocks.view(-1, many, size, size).transpose(0, 1)
    return wide.view(-1, many * size, many * size)


def block_size_at(
    site: Site, config: AdapterConfig, table: Mapping[str, int], usual: int, size: int, multiple: int = 1
) -> int:
    """Returns the size of the blocks at a layer.

    Args:
        site: the layer. config: the method's, for messages. table: pattern -> size. usual: for other layers.
        size: what is cut into blocks. multiple: what their number has to be a multiple of.

    Raises:
        BadConfig: a size that does not divide the layer.
    """
    found = table.get(site.path) or next((value for name, value in table.items() if matches(name, site.path)), usual)
    if size % (found * multiple) == 0:
        return int(found)
    possible = [number for number in range(2, size + 1) if size % (number * multiple) == 0]
    if multiple > 1:
        possible = [number for number in possible if number % 2 == 0]
    near = sorted(sorted(possible, key=lambda number: abs(math.log(number / found)))[:6])
    says = f"sizes that do, near it: {', '.join(map(str, near))}" if near else "none does"
    raise BadConfig(
        f"{type(config).__name__}(block_size={found}) does not cut the {size} "
        f"{'inputs' if size == site.cols else 'outputs'} of {site.path} into equal blocks"
        f"{f', a multiple of {multiple} of them' if multiple > 1 else ''}; {says}: give one of them for "
        "this layer in block_pattern, or exclude it"
    )


def shown_blocks(layers: Layers) -> dict[str, Any]:
    """Reads the size of the blocks off packed tensors: the most common one, and a pattern for the others."""
    sizes = {path: packed_size(tensors["skew"].shape[-1]) for path, tensors in layers.items() if "skew" in tensors}
    if not sizes:
        return {}
    counts = sorted(sizes.values())
    usual = max(counts, key=lambda size: (counts.count(size), -size))
    return {"block_size": usual, "block_pattern": {path: size for path, size in sizes.items() if size != usual}}


def packed_size(count: int) -> int:
    """Returns the size ``b`` of blocks with ``b (b - 1) / 2`` entries; one of 1 turns nothing.

    Raises:
        DoesNotFit: there is no such size.
    """
    size = (1 + math.isqrt(1 + 8 * count)) // 2
    if size * (size - 1) // 2 != count:
        raise DoesNotFit(f"{count} numbers are not the entries above the diagonal of a square block")
    return size


def packed(matrix: Tensor) -> Tensor:
    """Takes the entries above the diagonal of ``X - Xᵀ``: what :func:`skew` makes a matrix of.

    Args:
        matrix: ``X``, ``(..., b, b)``.
    """
    rows, cols = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1, device=matrix.device)
    return (matrix - matrix.mT)[..., rows, cols]


# -- other programs ----------------------------------------------------------------------------------------------------


def nearest_divisor(width: int, wanted: int) -> int:
    """Returns the divisor of ``width`` that is nearest to ``wanted``, the smaller of two that are as near.

    Example:
        >>> nearest_divisor(20, 8), nearest_divisor(16, 32), nearest_divisor(37, 8)
        (10, 16, 1)
    """
    return min((one for one in range(1, width + 1) if width % one == 0), key=lambda one: (abs(one - wanted), one))


def blocks_of_peft(config: Any, sites: Sites, size: int, count: int, *, fitted: bool = False) -> dict[str, Any]:
    """Makes our fields of the size of the blocks, which PEFT is given as it is or as the number of blocks of a layer.

    Args:
        config: PEFT's. sites: path -> layer. size, count: the two fields, one of them 0.
        fitted: take the nearest that divides a layer, and say so; else one that does not is refused.

    Raises:
        BadConfig: both are given or neither is, or the number does not divide a layer.
    """
    if bool(size) == bool(count):
        raise BadConfig(
            f"{type(config).__name__}: give either the size of the blocks or their number, and 0 for the other; found "
            f"{size} and {count}"
        )
    if size and not fitted:
        return {"block_size": size}
    widths = {path: site.rows if site.kind == "embedding" else site.cols for path, site in sites.items()}
    asked, sizes = size or count, dict[str, int]()
    others: dict[str, str] = {}
    what = f"{type(config).__name__}: {f'blocks of {asked}' if size else f'{asked} blocks'} do not divide"
    for path, width in widths.items():
        taken = nearest_divisor(width, asked) if fitted else asked
        if width % taken or (size and taken < 2):
            raise BadConfig(f"{what} the {width} inputs of {path}")
        if taken != asked:
            others.setdefault(f"{taken} for {width} inputs", path)
        sizes[path] = taken if size else width // taken
    if others:
        nearest = ", ".join(f"{taken} ({path})" for taken, path in others.items())
        warnings.warn(f"{what} all layers; the nearest that do are taken: {nearest}", stacklevel=2)
    if not sizes:
        return {"block_size": size} if size else {}
    usual = max(set(sizes.values()), key=list(sizes.values()).count)
    return {
        "block_size": usual,
        "block_pattern": {exactly([path]): one for path, one in sizes.items() if one != usual},
    }


def from_lycoris(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reads whole matrices ``X``, ``Q = X - Xᵀ``; alpha bounds ``‖Q‖`` over all blocks at ``alpha · rows``.

    Raises:
        DoesNotFit: the matrices are not square.
    """
    whole = tensors["skew"]
    if whole.dim() < 3 or whole.shape[-1] != whole.shape[-2]:
        raise DoesNotFit(f"{site.path} is turned by blocks of the shape {tuple(whole.shape)}, and they are square")
    entries, bound = packed(whole), float(fields.get("alpha", 0.0)) * site.rows
    norm = float(torch.linalg.vector_norm(entries, dtype=torch.float64)) * 2**0.5
    return {**tensors, "skew": (entries.double() * (bound / norm)).to(entries) if 0 < bound < norm else entries}


def to_lycoris(layers: Layers) -> Tables:
    """Makes whole matrices with zeros below the diagonal, for an alpha of 0, which bounds nothing."""
    made = {path: dict(tensors) for path, tensors in layers.items()}
    for tensors in made.values():
        tensors["skew"] = skew(tensors["skew"], packed_size(tensors["skew"].shape[-1])).triu()
    return made
