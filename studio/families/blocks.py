"""The blocks of a model that run one after another, and a model of which some of them stay in the CPU's memory.

A training can fetch the weights of such blocks when they compute (:mod:`studio.trainers.loop.block_swap`). What moves
are tensors of two dimensions and more, the matrices; vectors (norms, biases) are small and always where it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.quantization.backend import packing_of

__all__ = ["Block", "Resting", "away_blocks", "resting", "running_blocks", "shared_tensors", "spread", "staying"]

T = TypeVar("T")


class Block(NamedTuple):
    """A block, and where it stands: ``parent._modules[key] is module``."""

    parent: nn.Module
    key: str
    module: nn.Module


class Resting(NamedTuple):
    """A tensor of a block: ``table[name] is tensor``, where the table is one of ``module``'s."""

    module: nn.Module
    table: dict[str, Tensor | None]
    name: str
    tensor: Tensor


def running_blocks(root: nn.Module) -> list[Block]:
    """Returns the blocks of a model: the items of its outermost lists.

    An item that is itself little more than lists (a U-Net's levels, and its attentions) is taken apart.

    Example:
        >>> net = nn.ModuleDict({"head": nn.Linear(2, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
        >>> [block.key for block in running_blocks(net)]
        ['0', '1', '2']
    """
    found: list[Block] = []
    for child in root.children():
        if not isinstance(child, nn.ModuleList):
            found += running_blocks(child)
            continue
        for key, item in child._modules.items():
            if item is None or not _size(item):
                continue
            lists = [part for part in item.children() if isinstance(part, nn.ModuleList)]
            if 2 * sum(map(_size, lists)) >= _size(item):
                found += running_blocks(item)
            else:
                found.append(Block(child, key, item))
    return found


def _size(module: nn.Module) -> int:
    """Bytes, without those of adapters."""
    named = (*module.named_parameters(), *module.named_buffers())
    return sum(one.numel() * one.element_size() for name, one in named if ".adapters." not in f".{name}")


def away_blocks(root: nn.Module, count: int, name: str = "the model") -> list[Block]:
    """Returns the blocks that stay away, spread evenly, so that there is something to compute while one is fetched.

    Args:
        root: the model. count: how many. name: the model's, for the message.

    Raises:
        DoesNotFit: it has fewer.
    """
    return spread(running_blocks(root), count, name)


def spread(blocks: Sequence[T], count: int, name: str) -> list[T]:
    """Returns as many of the blocks of a model, at even distances.

    Raises:
        DoesNotFit: there are fewer.

    Example:
        >>> spread(range(10), 3, "unet")
        [1, 5, 8]
    """
    if count > len(blocks):
        raise DoesNotFit(f"blocks_to_swap={count}: {name} has {len(blocks)} blocks; give at most that")
    return [blocks[(2 * place + 1) * len(blocks) // (2 * count)] for place in range(count)]


def resting(block: nn.Module, elsewhere: frozenset[int] = frozenset()) -> Iterator[Resting]:
    """Iterates over the tensors of a block that move: the base's matrices.

    Args:
        block: the block. elsewhere: ids of tensors that others hold too, which stay.
    """
    for path, module in block.named_modules():
        if ".adapters." in f".{path}.":
            continue
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.dim() >= 2 and id(tensor) not in elsewhere:
                    yield Resting(module, table, name, tensor)


@contextmanager
def staying(root: nn.Module, count: int) -> Iterator[None]:
    """While it lasts, what moves the model leaves the matrices of the blocks that stay away where they are.

    Args:
        root: the model. count: how many blocks.

    Raises:
        DoesNotFit: it has fewer blocks.
    """
    blocks = away_blocks(root, count) if count else []
    shared = shared_tensors(root) if count else frozenset[int]()
    held = [one for block in blocks for one in resting(block.module, shared) if _waits(one.module)]
    for one in held:
        nothing = torch.empty(0, dtype=one.tensor.dtype)
        kept = isinstance(one.tensor, nn.Parameter)
        one.table[one.name] = nn.Parameter(nothing, requires_grad=False) if kept else nothing
    try:
        yield
    finally:
        for one in held:
            one.table[one.name] = one.tensor


def _waits(module: nn.Module) -> bool:
    packing = packing_of(module)
    return packing is None or packing.fetched


def shared_tensors(root: nn.Module) -> frozenset[int]:
    """Returns the ids of tensors that stand in more than one place."""
    seen: dict[int, int] = {}
    for module in root.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                seen[id(tensor)] = seen.get(id(tensor), 0) + 1
    return frozenset(one for one, count in seen.items() if count > 1)
