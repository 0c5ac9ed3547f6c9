"""Small whole-number tensors that are computed for real beside fake ones.

A model may ask what a mask or a length says, and choose shapes by it. A fake tensor has no numbers to answer with; so
whatever follows from masks, token numbers and counts alone is computed twice, once as a fake that is counted and once
for real, aside from what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)  # fmt: skip
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["KnownMode"]

MOST: Final = 1 << 22
"""Numbers of a tensor that is computed for real, at most."""

FEW: Final = 1 << 12
"""The same for floating point numbers."""

_INDEXING: Final = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_,
                    torch.ops.aten._unsafe_index_put, torch.ops.aten._index_put_impl_)  # fmt: skip
_RANDOM: Final = ("rand", "normal", "bernoulli", "dropout", "empty", "multinomial", "exponential")


class KnownMode(FakeTensorMode):
    """A fake mode in which tensors whose numbers follow from real ones tell them.

    Attributes:
        watch: is told of every operation, ``(operation, args, kwargs, what it gave)``; None: nobody is.

    Example:
        >>> with KnownMode():
        ...     mask = torch.ones(2, 3, dtype=torch.bool)
        ...     mask[1, 2] = False
        ...     int(mask.sum()), torch.zeros(2, 3)[mask].shape
        (5, torch.Size([5]))
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.watch: Callable[..., None] | None = None
        self._values: Any = WeakIdKeyDictionary()
        self._outlines: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is _DEVICE:  # asked of every tensor, again and again
            return args[0].fake_device
        given, watch = dict(kwargs or {}), self.watch
        self.watch = None  # what a fake of an operation is put together of is no part of it
        try:
            if _floats(args) and args[0] not in self._values:  # nearly all there is
                quick = func in _PLAIN and "device" not in given and _all_fake(args)
                out = (
                    self._plainly(func, args, given) if quick else super().__torch_dispatch__(func, types, args, given)
                )
            else:
                out = self._knowing(func, types, args, given)
        finally:
            self.watch = watch
        if watch is not None:
            watch(func, args, given, out)
        return out

    def _plainly(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        """Does an operation of which only sizes are asked, without what the fake mode looks up for each."""
        if func in _IN_PLACE:
            return args[0]  # type: ignore[no-any-return]
        with in_kernel_invocation_manager(self):
            if func in _VIEWS:
                shaped = func(*args, **given)
            else:  # what torch works out for shapes is kept for the next layer of the same shapes
                key = func, *map(_outline, args), *given.items()
                sizes = self._outlines.get(key)
                shaped = (
                    func(*args, **given)
                    if sizes is None
                    else torch.empty_strided(*sizes[:2], dtype=sizes[2], device="meta")
                )
                self._outlines[key] = shaped.shape, shaped.stride(), shaped.dtype
        return FakeTensor(self, shaped, args[0].fake_device)

    def _knowing(self, func: Any, types: Any, args: Any, given: dict[str, Any]) -> Any:
        """Does an operation on whole numbers, or by places."""
        if getattr(func, "_overloadpacket", None) in _INDEXING:
            args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
        if func is torch.ops.aten._local_scalar_dense.default:
            value = self._value(args[0])
            if value is not None:
                with unset_fake_temporarily():  # its number, and not a fake of it
                    return value.item()
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if func in _SHAPED:  # its shape depends on numbers
            real = self._computed(func, args, given, tensors)
            if real is not None:
                return tree_map_only(Tensor, self._fake, real)
        out = super().__torch_dispatch__(func, types, args, given)
        real = self._computed(func, args, given, tensors) if tensors or _is_small(out) else None
        self._keep(out, real, args, func)
        return out

    def _value(self, tensor: Any) -> Tensor | None:
        if not isinstance(tensor, Tensor):
            return None
        if isinstance(tensor, FakeTensor):
            return self._values.get(tensor)
        return None if tensor.is_meta else tensor

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as the places that it names, one tensor for each of its dimensions."""
        value = self._value(index)
        if index is None or index.dtype is not torch.bool or value is None:
            return [index]
        with unset_fake_temporarily():
            places = value.nonzero().unbind(1)
        return [self._fake(place) for place in places]

    def _computed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]
    ) -> Any:
        """What an operation gives for real; None where it is not known, or too large."""
        values = [self._value(tensor) for tensor in tensors]
        if any(value is None or value.numel() > MOST for value in values):
            return None
        if any(word in str(func) for word in _RANDOM):
            return None

        def real(leaf: Any) -> Any:
            return self._value(leaf) if isinstance(leaf, Tensor) else leaf

        plain_args, plain = tree_map(real, args), tree_map(real, dict(kwargs))
        with unset_fake_temporarily(), torch.no_grad():
            return func(*plain_args, **plain)

    def _keep(self, out: Any, real: Any, args: tuple[Any, ...], func: Any) -> None:
        if real is None:
            if func._schema.is_mutable and args and isinstance(args[0], FakeTensor):
                self._values.pop(args[0], None)
            return
        for fake, value in zip(tree_leaves(out), tree_leaves(real), strict=True):
            if isinstance(fake, FakeTensor) and isinstance(value, Tensor):
                self._values[fake] = value

    def _fake(self, real: Tensor) -> Tensor:
        fake = self.from_tensor(real)
        self._values[fake] = real
        return fake


_DEVICE: Final = torch.ops.prim.device.default
_A: Final = torch.ops.aten
_IN_PLACE: Final = frozenset({_A.add_.Tensor, _A.mul_.Tensor, _A.div_.Tensor, _A.addmm_.default, _A.copy_.default})
_VIEWS: Final = frozenset({
    _A.view.default, _A.t.default, _A.transpose.int, _A.expand.default, _A.detach.default, _A.unsqueeze.default,
    _A._unsafe_view.default,
})  # fmt: skip
_PLAIN: Final = _IN_PLACE | _VIEWS | {
    _A.mm.default, _A.addmm.default, _A.add.Tensor, _A.mul.Tensor, _A.div.Tensor, _A._to_copy.default,
    _A.clone.default, _A.zeros_like.default,
}  # fmt: skip
"""What is done again and again, and gives one tensor or takes one by its first argument."""

_SHAPED: Final = (_A.nonzero.default, _A.masked_select.default, _A.unique_consecutive.default, _A._unique2.default)


def _floats(args: tuple[Any, ...]) -> bool:
    """Whether an operation takes a fake tensor of floating point numbers, and no mask to choose some of them by."""
    first = args[0] if args else None
    if not isinstance(first, FakeTensor) or not first.dtype.is_floating_point:
        return False
    return not any(isinstance(one, list) and any(isinstance(part, Tensor) for part in one) for one in args[1:])


def _outline(one: Any) -> Any:
    return (one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one


def _all_fake(args: tuple[Any, ...]) -> bool:
    return all(isinstance(one, FakeTensor) for one in args if isinstance(one, Tensor))


def _is_small(out: Any) -> bool:
    """Whether what was made of no other tensor is small enough to be worth computing."""
    return all(
        leaf.numel() <= (FEW if leaf.dtype.is_floating_point else MOST)
        for leaf in tree_leaves(out)
        if isinstance(leaf, Tensor)
    )
