"""What blocks of a base that wait in the CPU's memory take there, and what is fetched of them on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from studio.errors import DoesNotFit
from studio.families.blocks import resting, running_blocks, spread
from studio.planning.quantised import Matrix, matrices, quantised
from studio.planning.tracker import rounded
from studio.quantization import Backend

__all__ = ["BlockSize", "Waiting", "block_sizes", "waiting"]


@dataclass(frozen=True)
class BlockSize:
    """What moves of a block.

    Args:
        size: bytes as it stands. matrices: the weights in it that could be quantised.
    """

    size: int
    matrices: Sequence[Matrix]

    def packed(self, way: Backend | None) -> int:
        """Returns its bytes where it is quantised."""
        if way is None:
            return self.size
        saved = quantised({"": self.matrices}, {"": way})
        return self.size - saved.before + saved.after


@dataclass(frozen=True)
class Waiting:
    """Blocks that wait.

    Args:
        there: bytes in the CPU's memory. fetched: bytes of the two largest, which are on the device at a time. left:
            bytes of the first two, which are there when a step ends.
    """

    there: int = 0
    fetched: int = 0
    left: int = 0

    def on_device(self, phase: str) -> int:
        """Returns the bytes that are on the device in a phase of a run."""
        found = {"load": 0, "caching": 0, "optimizer": self.left, "save": self.left}
        return found.get(phase, self.fetched)


def block_sizes(root: nn.Module) -> list[BlockSize]:
    """Returns the sizes of a model's blocks, before an adapter is put on it."""
    blocks = [block.module for block in running_blocks(root)]
    sizes = (sum(rounded(one.tensor.numel() * one.tensor.element_size()) for one in resting(block)) for block in blocks)
    return [BlockSize(size, matrices(block)) for size, block in zip(sizes, blocks, strict=True)]


def waiting(blocks: Sequence[BlockSize], count: int, name: str, way: Backend | None, checkpointed: bool) -> Waiting:
    """Returns what waits of a model.

    Args:
        blocks: the model's. count: how many wait. name: the model's. way: how it is quantised; None: not at all.
        checkpointed: whether blocks compute again in the backward pass.

    Raises:
        DoesNotFit: it has fewer, or what is quantised so cannot wait.

    Example:
        >>> waiting([BlockSize(size, []) for size in (10, 20, 30, 40)], 2, "unet", None, True)
        Waiting(there=60, fetched=60, left=60)
    """
    if not count:
        return Waiting()
    if way is not None and not checkpointed:
        raise DoesNotFit(f"blocks_to_swap on a base that is quantised ({way.says}) needs gradient_checkpointing=true")
    if way is not None and not way.packing.fetched:
        raise DoesNotFit(f"blocks_to_swap: {way.packing.says} cannot wait elsewhere than they compute; use another way")
    sizes = [block.packed(way) for block in spread(blocks, count, name)]
    return Waiting(sum(sizes), sum(sorted(sizes)[-2:]), sum(sizes[:2]))
