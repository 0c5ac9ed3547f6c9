"""Attention as a training computes it: by a kernel that keeps no scores, or with all of them written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["attending_as"]

_KERNEL: Final = F.scaled_dot_product_attention


@contextmanager
def attending_as(kind: str, modules: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, modules attend in a way.

    Args:
        kind: ``"eager"`` writes the scores out; ``"sdpa"`` and ``"xformers"`` keep the output and a sum of each row.
        modules: of diffusers or transformers; they are given no other way back, for nobody else has them.
    """
    if kind != "eager":
        yield
        return
    for module in modules:
        _write_out(module)
    with _Eager():
        yield


def _write_out(module: nn.Module) -> None:
    """diffusers' and transformers' own code without a kernel, where they have some."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    for part in module.modules():
        if isinstance(part, Attention) and isinstance(part.processor, AttnProcessor2_0):
            part.set_processor(AttnProcessor())  # type: ignore[no-untyped-call]
    switch = getattr(module, "set_attn_implementation", None)
    if switch is not None:
        switch("eager")


class _Eager(TorchFunctionMode):
    """Computes attention by its formula, for whoever asks torch for the kernel."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_scores if func is _KERNEL else func)(*args, **(kwargs or {}))


def _scores(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    shared = query.shape[-3] // key.shape[-3]
    if shared > 1:
        key, value = (one.repeat_interleave(shared, -3) for one in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-1, -2)) * factor
    if is_causal:
        length = scores.shape[-2:]
        scores = scores + torch.full(length, -math.inf, dtype=scores.dtype, device=scores.device).triu(1)
    if attn_mask is not None:
        masked = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
        scores = masked
    return scores.softmax(-1) @ value
