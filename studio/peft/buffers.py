"""``BufferDict``: buffers by name, as ``torch.nn.ParameterDict`` has parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, cast

from torch import Tensor, nn

__all__ = ["BufferDict"]


class BufferDict(nn.Module):
    """A table of buffers that is a module, so that they move and are saved with it.

    Args:
        buffers: name -> tensor ``(...)``, or pairs of both. persistent: whether they stand in the state dict.

    Raises:
        TypeError: something that is neither. ValueError: an entry that is no pair.

    Example:
        >>> import torch
        >>> held = BufferDict({"left": torch.zeros(2)})
        >>> held.update([("right", torch.ones(3))])
        >>> list(held), held["right"].shape
        (['left', 'right'], torch.Size([3]))
    """

    def __init__(self, buffers: Mapping[str, Tensor] | Iterable[Any] | None = None, persistent: bool = False) -> None:
        super().__init__()
        self.persistent = persistent
        if buffers is not None:
            self.update(buffers)

    def __getitem__(self, key: str) -> Tensor:
        return cast(Tensor, self._buffers[key])

    def __setitem__(self, key: str, buffer: Tensor) -> None:
        self.register_buffer(key, buffer, persistent=self.persistent)

    def __delitem__(self, key: str) -> None:
        del self._buffers[key]
        self._non_persistent_buffers_set.discard(key)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __contains__(self, key: object) -> bool:
        return key in self._buffers

    def keys(self) -> Iterable[str]:
        """Returns the names."""
        return self._buffers.keys()

    def values(self) -> Iterable[Tensor]:
        """Returns the buffers."""
        return cast("dict[str, Tensor]", self._buffers).values()

    def items(self) -> Iterable[tuple[str, Tensor]]:
        """Returns pairs of name and buffer."""
        return cast("dict[str, Tensor]", self._buffers).items()

    def clear(self) -> None:
        """Takes all buffers out."""
        for key in list(self):
            del self[key]

    def pop(self, key: str) -> Tensor:
        """Takes a buffer out and returns it."""
        found = self[key]
        del self[key]
        return found

    def update(self, buffers: Mapping[str, Tensor] | Iterable[Any]) -> None:
        """Takes buffers in, in their order; those of the same names are replaced.

        Raises:
            TypeError: neither a mapping nor pairs. ValueError: an entry that is no pair.
        """
        if not isinstance(buffers, Iterable):
            raise TypeError(f"BufferDict.update takes a mapping, or pairs of name and tensor, not {buffers!r}")
        pairs = list(buffers.items() if isinstance(buffers, (Mapping, BufferDict)) else buffers)
        for number, pair in enumerate(pairs):
            if not isinstance(pair, Iterable):
                raise TypeError(f"BufferDict.update: entry {number} is {pair!r}, no pair of name and tensor")
            if len(tuple(pair)) != 2:
                raise ValueError(f"BufferDict.update: entry {number} has the length {len(tuple(pair))}; 2 is required")
        for key, buffer in pairs:
            self[key] = buffer

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a BufferDict holds buffers and computes nothing: it should not be called")
