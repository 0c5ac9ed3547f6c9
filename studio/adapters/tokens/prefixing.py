"""The hook of one attention: a prefix before its keys and values, with a strength of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters.sites.language import CachedAttention
from studio.adapters.tokens.caches import Ahead, ahead_across, own_part
from studio.adapters.tokens.state import TokenState
from studio.errors import DoesNotFit

__all__ = ["AttentionWire"]


class AttentionWire:
    """Puts the prefixes that act before the keys and values of one attention.

    A strength ``s`` multiplies the weight that the prefix has before the softmax is normalised: its scores get
    ``+ log s``. At 1 it is read as it was trained, at 0 it is not there.
    """

    def __init__(self, state: TokenState, attention: CachedAttention) -> None:
        self.state, self.attention = state, attention

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Changes the cache and the mask that the attention is called with.

        Raises:
            DoesNotFit: the model calls it as an attention of another place.
        """
        attention = self.attention
        prefixes = self.state.prefixes(attention.place)
        if not prefixes:
            return None
        self.state.note_called()
        given = {**dict(zip(attention.names, args, strict=False)), **kwargs}
        states = given["hidden_states"]
        encoded: Tensor | None = given.get("key_value_states", given.get("encoder_hidden_states"))
        if (encoded is not None) != (attention.place == "cross"):
            raise DoesNotFit(f"{attention.path} was taken for {attention.place} attention and is called otherwise")
        parts = [adapter(type(adapter).at, attention.path) for _, adapter, _ in prefixes]
        batch = states.shape[0]
        both = parts[0] if len(parts) == 1 else (torch.cat([part[i] for part in parts], dim=2) for i in (0, 1))
        keys, values = (tensor.expand(batch, -1, -1, -1) for tensor in both)
        numbers = [self.state.strength(name, attention.path) for name, _, _ in prefixes]
        found = set().union(*(n.tolist() if isinstance(n, Tensor) else (n,) for n in numbers))  # on the CPU: no waiting
        levels = self._levels(numbers, [adapter.count for _, adapter, _ in prefixes], batch, states.device)
        if 0 in found:  # those that are off stand first: nothing comes between the others and the text
            order = (levels != 0).long().argsort(dim=1, stable=True)
            index = order[:, None, :, None].expand_as(keys)
            keys, values, levels = keys.gather(2, index), values.gather(2, index), levels.gather(1, order)
        past, length = self._join(given, keys, values, states if encoded is None else encoded)
        name = self._mask_name()
        given[name] = self._widened(given.get(name), levels, found, past, states, length, given.get("position_ids"))
        return (), given

    def _join(self, given: dict[str, Any], keys: Tensor, values: Tensor, read: Tensor) -> tuple[Any, int]:
        """Puts the prefix before what the attention reads; returns the cache that it had, and the new tokens there."""
        cache, past = self.attention.cache, None
        if self.attention.place == "cross":
            given[cache] = ahead_across(given.get(cache), keys, values)
        else:
            past = own_part(given.get(cache))
            given[cache] = Ahead(past, keys, values)
        if given.get("alibi") is not None:
            given["alibi"] = self._farther(given["alibi"], keys.shape[2])
        return past, read.shape[1]

    def _farther(self, biases: Tensor, count: int) -> Tensor:
        """The biases by distance ``(B · heads, 1, L)`` with those of the prefix, which stands right before the text."""
        slopes = self.attention.slopes(biases.dtype).to(biases.device)
        ahead = slopes[:, None, None] * torch.arange(-count, 0, device=biases.device)
        return torch.cat([ahead.to(biases.dtype).repeat(biases.shape[0] // len(slopes), 1, 1), biases], dim=-1)

    def _levels(self, numbers: list[float | Tensor], counts: list[int], batch: int, device: torch.device) -> Tensor:
        """The strength of each virtual token ``(1, m)``, or by row ``(B, m)`` where samples have their own."""
        if not any(isinstance(number, Tensor) for number in numbers):
            flat = [number for number, count in zip(numbers, counts, strict=True) for _ in range(count)]
            return self.state.kept((*flat, device), lambda: torch.tensor([flat], device=device))
        columns = [
            self.state.rows(number, batch, device)[:, None].expand(batch, count)
            for number, count in zip(numbers, counts, strict=True)
        ]
        return torch.cat(columns, dim=1)

    def _mask_name(self) -> str:
        names = self.attention.names
        if self.attention.place == "cross" and "encoder_attention_mask" in names:
            return "encoder_attention_mask"
        return "attention_mask" if "attention_mask" in names else "mask"

    def _widened(
        self, mask: Any, levels: Tensor, found: set[float], past: Any, states: Tensor, length: int, positions: Any
    ) -> Tensor | None:
        """The mask with columns for the prefix; None where everything is read and nothing is causal."""
        module: Any = self.attention.module
        config = getattr(module, "config", None)
        how = "eager" if config is None else config._attn_implementation
        if how not in ("sdpa", "eager") or (mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4)):
            raise DoesNotFit(
                f"a prefix needs attn_implementation 'sdpa' or 'eager'; {type(module).__name__} runs with {how!r}"
            )
        asked, layer, seen, offset, width = states.shape[1], module.layer_idx, 0, 0, length
        if past is not None:
            seen = int(past.get_seq_length(layer))
            width, offset = past.get_mask_sizes(asked, layer)
        reach = self._reach(seen, asked, levels, positions)
        plain = found == {1} and reach is None
        causal = bool(getattr(module, "is_causal", False)) and self.attention.place == "decoder"
        if mask is None and plain and (asked == 1 or not causal):
            return None
        key = (id(mask), id(levels), seen, asked, width, offset, causal, _dtype(states))
        if reach is not None:
            return self._joined(mask, levels, found, reach, states, key[2:-1])
        # the attentions of a place are called with the same mask
        return self.state.kept(key, lambda: self._joined(mask, levels, found, None, states, key[2:-1]), mask, levels)

    @staticmethod
    def _joined(
        mask: Any, levels: Tensor, found: set[float], reach: Tensor | None, states: Tensor, sizes: Any
    ) -> Tensor:
        """The columns of the prefix, and those of the text."""
        (seen, asked, width, offset, causal), device = sizes, states.device
        if mask is None:
            mask = torch.ones(1, 1, asked, width, dtype=torch.bool, device=device)
            if causal:
                rows = torch.arange(asked, device=device)[:, None] + seen
                mask = (torch.arange(width, device=device) + offset <= rows)[None, None]
        read = (levels != 0)[:, None, None, :]
        read = read if reach is None else read & reach[:, None]
        shape = (max(mask.shape[0], read.shape[0]), mask.shape[1], asked, -1)
        if mask.dtype == torch.bool and found <= {0, 1}:
            return torch.cat([read.expand(*shape[:3], -1), mask.expand(*shape[:3], -1)], dim=-1)
        scores = _dtype(states) if mask.dtype == torch.bool else mask.dtype
        least = torch.full((), torch.finfo(scores).min, dtype=scores, device=device)
        if mask.dtype == torch.bool:
            mask = torch.where(mask, torch.zeros_like(least), least)
        weight = levels.clamp_min(torch.finfo(torch.float32).tiny).log().to(scores)[:, None, None, :]
        columns = torch.where(read, weight, least)
        return torch.cat([columns.expand(*shape[:3], -1), mask.expand(*shape[:3], -1)], dim=-1)

    def _reach(self, seen: int, asked: int, levels: Tensor, positions: Any) -> Tensor | None:
        """Which virtual tokens a sliding window still reaches ``(B, asked, m)``; None where it reaches all.

        The prefix stands before the text, so it leaves the window first, as in PEFT.
        """
        module: Any = self.attention.module
        config = getattr(module, "config", None)
        window = vars(module).get("sliding_window", getattr(config, "sliding_window", None))
        kinds = getattr(config, "layer_types", None)
        if kinds and "sliding" not in kinds[module.layer_idx]:
            window = None
        count, device = levels.shape[1], levels.device
        if self.attention.place != "decoder" or not window or count + seen + asked <= window:
            return None
        ahead = (levels != 0).sum(1, keepdim=True)
        there = torch.arange(count, device=device) - (count - ahead)
        here = torch.arange(asked, device=device) + seen + ahead
        if isinstance(positions, Tensor) and positions.dim() == 2:  # padding at the left is no distance
            here = positions
        return here[:, :, None] - there[:, None, :] < window


def _dtype(states: Tensor) -> torch.dtype:
    """The dtype that scores are computed in."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
