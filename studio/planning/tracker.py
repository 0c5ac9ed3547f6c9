"""Every storage counted from its first tensor until it dies: what a step holds, by category and by phase.

It works on real tensors and on fake ones alike (:mod:`studio.planning.fakes`), which is how a forecast is held against
the truth. Sizes are rounded up to 512 bytes, as the allocators of accelerators do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["BLOCK", "Peak", "Tracker", "rounded"]

BLOCK: Final = 512
"""Bytes in which accelerators give memory away."""


def rounded(size: int) -> int:
    """Returns what an allocation of so many bytes takes.

    Example:
        >>> rounded(0), rounded(1), rounded(512), rounded(513)
        (0, 512, 512, 1024)
    """
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which most was held.

    Args:
        total: bytes.
        by: category -> bytes, together ``total``.
        operation: what was computed then; None: nothing yet.
    """

    total: int = 0
    by: Mapping[str, int] = field(default_factory=dict)
    operation: Any = None


class Tracker(TorchDispatchMode):
    """Counts the storages of whatever is computed while it is entered.

    Attributes:
        held: category -> bytes now.
        peaks: phase -> its largest moment.
        flops: floating point operations of matrix products, convolutions and attention, by phase.

    Example:
        >>> import torch
        >>> tracker = Tracker()
        >>> with tracker, tracker.phase("forward", "activations"):
        ...     x = torch.zeros(256)
        ...     y = (x + 1).sum()
        >>> tracker.peaks["forward"].total, tracker.held
        (2560, {'activations': 1536})
        >>> del x, y
        >>> tracker.held
        {'activations': 0}
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.peaks: dict[str, Peak] = {}
        self.flops: dict[str, int] = {}
        self._live: dict[int, tuple[int, str, weakref.ref[Any]]] = {}
        self._now = self._most = 0
        self._phase, self._category = "", "activations"

    @property
    def now(self) -> int:
        """Bytes that are held."""
        return self._now

    @contextmanager
    def phase(self, name: str, category: str) -> Iterator[None]:
        """While it lasts, new storages are of a category, and the peak is that of a phase.

        Args:
            name: the phase; one that comes again goes on. category: of what is made in it.
        """
        before = self._phase, self._category, self._most
        self._phase, self._category = name, category
        self._most = self.peaks.get(name, Peak()).total
        self._note(None)
        try:
            yield
        finally:
            self._phase, self._category, self._most = before

    def own(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Says of what category the storages of tensors are, which may have been made before."""
        for tensor in tensors:
            if tensor is not None:
                self._take(tensor, category)

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Says that tensors are no longer where memory is counted; :meth:`own` brings them back."""
        for tensor in tensors:
            self._free(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.saw(func, args, kwargs or {}, out)
        return out

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Takes what an operation has given; whoever computes by himself calls it instead of entering the tracker.

        Args:
            func: the operation. args, kwargs: what it took. out: what it gave.
        """
        if isinstance(out, Tensor):
            self._take(out, None, func)
        else:
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self._take(tensor, None, func)
        self._count(func, args, kwargs, out)

    def _take(self, tensor: Tensor, category: str | None, func: Any = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is not None:
            if category is not None and known[1] != category:
                size, other, ref = known
                self._live[key] = size, category, ref
                self.held[other] -= size
                self.held[category] = self.held.get(category, 0) + size
            return
        size, own = rounded(storage.nbytes()), category or self._category
        self._live[key] = size, own, weakref.ref(storage, lambda _: self._free(key))
        self.held[own] = self.held.get(own, 0) + size
        self._now += size
        if self._now > self._most:
            self._note(func)

    def _free(self, key: int) -> None:
        found = self._live.pop(key, None)
        if found is not None:
            self.held[found[1]] -= found[0]
            self._now -= found[0]

    def _note(self, operation: Any) -> None:
        """Remembers this moment, where it is the largest of its phase."""
        if self._phase and (self._now > self._most or self._phase not in self.peaks):
            self._most = self._now
            by = {category: size for category, size in self.held.items() if size}
            self.peaks[self._phase] = Peak(self._now, by, operation)

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        packet = getattr(func, "_overloadpacket", None)
        name = getattr(packet, "__name__", "")
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            flops = sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        else:
            return
        self.flops[self._phase] = self.flops.get(self._phase, 0) + flops
