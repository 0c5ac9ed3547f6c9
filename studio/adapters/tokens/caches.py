"""Stand-ins for a cache while a prefix acts; made anew for every call and never handed to the caller."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from studio.errors import DoesNotFit

__all__ = ["Ahead", "ahead_across", "own_part", "shifted"]


class Ahead:
    """The cache of one attention with a prefix before its keys and values.

    Args:
        cache: the real cache, or None where the call has none.
        keys, values: the prefix ``(B, heads, m, size)``.
    """

    def __init__(self, cache: Any, keys: Tensor, values: Tensor) -> None:
        self.cache, self.prefix = cache, (keys, values)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns all keys and values, the prefix first; the real cache gets the new ones only.

        Args:
            keys, values: the new ones ``(B, heads, L, size)``.
            layer_idx: the attention's number, for the real cache.
            args, kwargs: what else the real cache is told.

        Raises:
            DoesNotFit: the prefix is of another attention.
        """
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, layer_idx, *args, **kwargs)
        return self.before(keys, values)

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the prefix before keys and values ``(B, heads, L, size)``.

        Raises:
            DoesNotFit: the prefix is of another attention.
        """
        ours, theirs = self.prefix[0], keys
        if (ours.shape[1], ours.shape[3]) != (theirs.shape[1], theirs.shape[3]):
            raise DoesNotFit(
                f"the prefix has {ours.shape[1]} key heads of {ours.shape[3]} numbers, and this attention has "
                f"{theirs.shape[1]} of {theirs.shape[3]}"
            )
        both = zip(self.prefix, (keys, values), strict=True)
        first, second = (torch.cat([new.to(old.dtype), old], dim=2) for new, old in both)
        return first, second

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Tokens before the new ones, the prefix counted."""
        return self.prefix[0].shape[2] + (0 if self.cache is None else self.cache.get_seq_length(layer_idx))

    @property
    def layers(self) -> Any:
        """What the cache holds per layer, with the prefix before it."""
        return _Layers(self)


class _Layers:
    def __init__(self, ahead: Ahead) -> None:
        self.ahead = ahead

    def __getitem__(self, index: int) -> Any:
        held = self.ahead.cache.layers[index]
        keys, values = self.ahead.before(held.keys, held.values)
        return SimpleNamespace(keys=keys, values=values)


@functools.cache
def _across() -> type[Any]:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class Across(EncoderDecoderCache):  # type: ignore[misc, unused-ignore]
        """For cross-attention, which asks for an EncoderDecoderCache."""

        def __init__(self, cache: Any, keys: Tensor, values: Tensor) -> None:
            self.self_attention_cache = DynamicCache() if cache is None else cache.self_attention_cache
            held = None if cache is None else cache.cross_attention_cache
            self.cross_attention_cache = Ahead(held, keys, values)
            self.is_updated = {} if cache is None else cache.is_updated

    return Across


@functools.cache
def _shifted() -> type[Any]:
    from transformers.cache_utils import DynamicCache

    class Shifted(DynamicCache):  # type: ignore[misc, unused-ignore]
        """A cache that says it is longer, for stacks that count positions from it."""

        def __init__(self, cache: Any, count: int) -> None:
            self.count = count
            self.held = DynamicCache() if cache is None else cache
            self.__dict__.update({**self.held.__dict__, "count": count, "held": self.held})

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return int(super().get_seq_length(layer_idx)) + self.count

    return Shifted


@functools.cache
def _shifted_both() -> type[Any]:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class ShiftedBoth(EncoderDecoderCache):  # type: ignore[misc, unused-ignore]
        """The same for a decoder that also has a cache of its encoder's states."""

        def __init__(self, cache: Any, count: int) -> None:
            self.count = count
            self.held = EncoderDecoderCache(DynamicCache(), DynamicCache()) if cache is None else cache
            self.self_attention_cache = self.held.self_attention_cache
            self.cross_attention_cache = self.held.cross_attention_cache
            self.is_updated = self.held.is_updated

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return int(self.self_attention_cache.get_seq_length(layer_idx)) + self.count

    return ShiftedBoth


def ahead_across(cache: Any, keys: Tensor, values: Tensor) -> Any:
    """Returns a cache for cross-attention with a prefix before the encoder's keys and values.

    Args:
        cache: the call's, or None.
        keys, values: the prefix ``(B, heads, m, size)``.
    """
    from transformers.cache_utils import EncoderDecoderCache

    return _across()(cache if isinstance(cache, EncoderDecoderCache) else None, keys, values)


def own_part(cache: Any) -> Any:
    """Returns the part of a cache that belongs to self-attention."""
    from transformers.cache_utils import EncoderDecoderCache

    cache = getattr(cache, "held", cache)
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def shifted(cache: Any, count: int, *, encoder_decoder: bool) -> Any:
    """Returns a cache that says it holds ``count`` more tokens than it does."""
    return (_shifted_both() if encoder_decoder else _shifted())(cache, count)
