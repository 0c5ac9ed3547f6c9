"""A base of which some blocks wait in the CPU's memory, and are fetched one by one in both passes.

A block's matrices are copied to the device when it computes, in the forward pass and again in the backward pass, while
the copies of the next block are already on their way on a stream of their own; those of the last one are let go. So two
of these blocks are on the device at a time, however many there are. Nothing is ever written back: the base's own
tensors stay where they are, and come back into their places bit for bit.

What the backward pass keeps of a copy is a note of where it was (:meth:`BlockSwap.keeping`), so that it keeps no weight
alive, with gradient checkpointing and without. Which block comes next is what came next when the last two were the
same; the first time, the neighbour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from studio.device import side_stream
from studio.families.blocks import Resting, away_blocks, resting, shared_tensors
from studio.quantization.counting import packed_layers
from studio.trainers.loop.fetching import check_fetched, copied, in_store, is_plain

__all__ = ["BlockSwap"]

Hooks = torch.autograd.graph.saved_tensors_hooks


class _Note(NamedTuple):
    """What is kept of a copy for the backward pass: of which tensor, and how it was looked at."""

    unit: _Unit
    place: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Unit:
    """The matrices of one block.

    Args:
        number: in the order of the model. held: the tensors.
    """

    def __init__(self, number: int, held: Sequence[Resting]) -> None:
        self.number, self.held = number, held
        self.copies: list[Tensor] = []
        self.ready: Any = None


class BlockSwap:
    """Lets blocks of a model wait in the CPU's memory until they compute.

    On a CPU the copies are made all the same, so that it can be tried there; it gains nothing.

    Args:
        root: the model. count: how many of its blocks wait, >= 1. name: the model's, for messages.
        checkpointed: whether blocks compute again in the backward pass.
        fetched: is told of copies when they have been made.

    Raises:
        DoesNotFit: it has fewer blocks, or they are quantised in a way that cannot be fetched.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
        >>> swap, weight = BlockSwap(net, 1), net[1][0].weight
        >>> _ = net[1][0](torch.ones(1, 2))
        >>> net[1][0].weight is weight, torch.equal(net[1][0].weight, weight)
        (False, True)
        >>> swap.close()
        >>> net[1][0].weight is weight
        True
    """

    def __init__(
        self, root: nn.Module, count: int, *, name: str = "the model", checkpointed: bool = False,
        fetched: Callable[[Iterable[Tensor]], None] | None = None,
    ) -> None:  # fmt: skip
        blocks = [block.module for block in away_blocks(root, count, name)]
        shared = shared_tensors(root)
        self.units = [_Unit(number, list(resting(block, shared))) for number, block in enumerate(blocks)]
        self.fetched = fetched
        own = {id(one.tensor) for unit in self.units for one in unit.held}
        self.device = next((p.device for p in root.parameters() if id(p) not in own), torch.device("cpu"))
        for unit in self.units:
            check_fetched(unit.held, name, checkpointed)
        self._before = [(one.tensor, one.tensor.device) for unit in self.units for one in unit.held]
        self._current: _Unit | None = None
        self._seen: tuple[_Unit | None, _Unit | None] = (None, None)
        self._after: dict[tuple[_Unit | None, _Unit | None], _Unit] = {}
        self._places: dict[int, tuple[_Unit, int]] = {}
        self._stream: Any = side_stream(self.device)
        for tensor in self.held if self.device.type != "cpu" else ():
            if is_plain(tensor):
                tensor.data = in_store(tensor.data)
        self._hooks = [
            hook for block, unit in zip(blocks, self.units, strict=True) for hook in self._listen(block, unit)
        ]

    def _listen(self, block: nn.Module, unit: _Unit) -> list[Any]:
        """Sees to it that a block's copies are there when any part of it computes, in either pass.

        Not the block alone: checkpointing may call a part of it, or its forward without its hooks. A quantised layer
        may read its weight in the backward pass by itself, which comes after the gradient of its output.
        """
        callers = [block, *{id(one.module): one.module for one in unit.held if one.module is not block}.values()]
        hooks: list[Any] = [one.register_forward_pre_hook(lambda *_: self.need(unit)) for one in callers]

        def behind(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                output.grad_fn.register_prehook(lambda grads: self.need(unit))

        return [*hooks, *(layer.register_forward_hook(behind) for _, layer, _ in packed_layers(block))]

    @property
    def held(self) -> list[Tensor]:
        """The tensors that wait."""
        return [one.tensor for unit in self.units for one in unit.held]

    def need(self, unit: _Unit) -> None:
        """Brings a block's matrices, begins to bring the next one's, and lets the others' go."""
        if unit is self._current:
            return
        before, self._current = self._current, unit
        self._after[self._seen] = unit
        self._seen = before, unit
        following = self._after.get(self._seen) or self._neighbour(before, unit)
        for other in self.units:
            if other is not unit and other.copies:
                self._drop(other)
        with torch.no_grad(), torch.inference_mode(False):
            self._bring(unit)
            self._settle(unit)
            if following is not None:
                self._bring(following)

    def _neighbour(self, before: _Unit | None, unit: _Unit) -> _Unit | None:
        """The next one in the same direction; behind the last one the passes turn round."""
        way = 1 if before is None or before.number < unit.number else -1
        there = [unit.number + turn for turn in (way, -way) if 0 <= unit.number + turn < len(self.units)]
        return self.units[there[0]] if there else None

    def _bring(self, unit: _Unit) -> None:
        """Begins to copy. Room is taken in the order of what computes: whoever used it before has been asked for it."""
        if unit.copies:
            return
        pairs: list[tuple[Tensor, Tensor]] = []

        def room(tensor: Tensor) -> Tensor:
            pairs.append((torch.empty_like(tensor, device=self.device), tensor))
            return pairs[-1][0]

        unit.copies = [copied(one, room) for one in unit.held]
        with self._beside():
            for copy, tensor in pairs:
                copy.copy_(tensor, non_blocking=True)
        unit.ready = None if self._stream is None else self._stream.record_event()
        if self.fetched is not None:
            self.fetched(unit.copies)

    def _beside(self) -> AbstractContextManager[Any]:
        """What is done in it is done on the other stream, where there is one, after what has been asked for so far."""
        if self._stream is None:
            return contextlib.nullcontext()
        device = torch.get_device_module(self.device)
        self._stream.wait_stream(device.current_stream(self.device))
        found: AbstractContextManager[Any] = device.stream(self._stream)
        return found

    def _settle(self, unit: _Unit) -> None:
        """Waits until the copies are there, and puts them in their places."""
        self._wait(unit)
        for place, (one, copy) in enumerate(zip(unit.held, unit.copies, strict=True)):
            one.table[one.name] = copy
            self._places[_storage(copy)] = unit, place

    def _wait(self, unit: _Unit) -> None:
        if unit.ready is not None:
            torch.get_device_module(self.device).current_stream(self.device).wait_event(unit.ready)
            unit.ready = None

    def _drop(self, unit: _Unit) -> None:
        """Lets copies go; the base's own tensors take their places."""
        self._wait(unit)
        for one, copy in zip(unit.held, unit.copies, strict=True):
            one.table[one.name] = one.tensor
            self._places.pop(_storage(copy), None)
        unit.copies = []

    def keeping(self, inner: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        """Returns a context in which the backward pass keeps no copy; what else it keeps is ``inner``'s affair.

        Args:
            inner: one of torch's ``saved_tensors_hooks``, or a context that does nothing.
        """
        put, get = (inner.pack_hook, inner.unpack_hook) if isinstance(inner, Hooks) else (_same, _same)

        def pack(tensor: Tensor) -> Any:
            found = self._places.get(_storage(tensor))
            if found is None or found[0].copies[found[1]].dtype != tensor.dtype:
                return put(tensor)
            return _Note(*found, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

        def unpack(kept: Any) -> Any:
            if not isinstance(kept, _Note):
                return get(kept)
            self.need(kept.unit)
            copy = kept.unit.copies[kept.place]
            return copy.as_strided(kept.size, kept.stride, kept.offset)

        return Hooks(pack, unpack)

    def settle(self) -> None:
        """Brings the adapters on the blocks that wait to where they compute."""
        for module in {id(one.module): one.module for unit in self.units for one in unit.held}.values():
            adapters = module._modules.get("adapters")
            if adapters is not None:
                adapters.to(self.device)

    def rest(self) -> None:
        """Lets all copies go."""
        for unit in self.units:
            if unit.copies:
                self._drop(unit)
        self._current = None

    def close(self) -> None:
        """Gives the model back: its own tensors in their places and where they were, and no hooks."""
        self.rest()
        for hook in self._hooks:
            hook.remove()
        for tensor, device in self._before:
            if tensor.device != device:
                tensor.data = tensor.data.to(device)
        self._hooks, self._before = [], []


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(value: Any) -> Any:
    return value
