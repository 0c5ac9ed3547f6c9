"""What several processes share, by formula over what one of them was counted to hold.

With N processes, W bytes of frozen weights, A of adapter, G of gradients, O of optimizer states and u the largest unit
that is put together at once (a block)::

    none     W + A + G + O + b            b: the buckets that gradients travel in, as many bytes as gradients
    full     W/N + 2u + A + G + O         the base in parts, one unit whole and the next on its way; adapters whole
    zero1    W + A + G + O/N
    zero2    W + A + G/N + O/N + b
    zero3    W/N + 2u + A + G/N + O/N + b   as the studio's trainings set DeepSpeed up
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["SHARDINGS", "Sharding", "deepspeed_buffers", "page_locked", "share"]

Bytes = Mapping[str, int]


@dataclass(frozen=True)
class Sharding:
    """Which share of each category a process keeps.

    Args:
        what: in words. weights, adapter, gradients, optimizer: whether each is divided among processes.
        buckets: whether gradients travel in buckets of their own.
    """

    what: str
    weights: bool = False
    adapter: bool = False
    gradients: bool = False
    optimizer: bool = False
    buckets: bool = True


SHARDINGS: Final[Mapping[str, Sharding]] = {
    "none": Sharding("each process holds everything"),
    "full": Sharding("the frozen base is divided, adapters are whole", weights=True, buckets=False),
    "zero1": Sharding("optimizer states are divided", optimizer=True),
    "zero2": Sharding("optimizer states and gradients are divided", gradients=True, optimizer=True),
    "zero3": Sharding(
        "the base, optimizer states and gradients are divided, adapters are whole",
        weights=True,
        gradients=True,
        optimizer=True,
    ),
}


def deepspeed_buffers(parameters: int, itemsize: int) -> int:
    """Returns the bytes that DeepSpeed's ZeRO-3 holds besides, by its own settings where nobody changes them.

    Up to 10⁹ parameters stay together that are soon wanted again (``stage3_max_live_parameters``), and gradients are
    put into a bucket of 5·10⁸ (``reduce_bucket_size``).

    Args:
        parameters: of the model. itemsize: bytes of one.

    Example:
        >>> deepspeed_buffers(3_000_000_000, 4), deepspeed_buffers(1_000_000, 4)
        (6000000000, 8000000)
    """
    return (min(parameters, 10**9) + min(parameters, 5 * 10**8)) * itemsize


def page_locked(sizes: Iterable[int]) -> int:
    """Returns the bytes that tensors take in memory that an accelerator copies from: powers of two, each for itself.

    Args:
        sizes: of the tensors, in bytes, each above 0.

    Example:
        >>> page_locked([3, 4, 5])
        16
    """
    return sum(1 << (size - 1).bit_length() for size in sizes)


def share(held: Bytes, way: Sharding, processes: int, unit: int) -> dict[str, int]:
    """Returns what one of several processes holds of each category.

    Args:
        held: category -> bytes of a process by itself. way: how it is divided. processes: N, >= 1.
        unit: bytes of the largest block.

    Example:
        >>> share({"weights": 800, "adapter": 40, "gradients": 40, "optimizer": 80}, SHARDINGS["zero3"], 4, 50)
        {'weights': 300, 'adapter': 40, 'gradients': 10, 'optimizer': 20, 'communication': 40}
    """
    found = dict(held)
    if processes == 1:
        return found
    divide: Callable[[int], int] = lambda size: -(-size // processes)  # noqa: E731
    for name in ("weights", "adapter", "gradients", "optimizer"):
        if getattr(way, name) and name in found:
            found[name] = divide(found[name])
    if way.weights:
        found["weights"] = found.get("weights", 0) + 2 * unit
    if way.buckets and found.get("gradients"):
        found["communication"] = held["gradients"]
    return found
