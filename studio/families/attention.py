"""Attention: by what the denoiser's attention is computed, for the length of one call.

A denoiser asks torch for ``softmax(q kᵀ · scale + mask) v``. While :func:`attending` lasts, what stands in
:data:`ATTENTIONS` answers in its place. Nothing is set on the model or in diffusers (whose own switch holds for the
whole process and reaches only some layers), so there is nothing to give back; adapters act in the layers before and
behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from studio.errors import DoesNotFit
from studio.packages import EXTRAS, need
from studio.registry import Registry

__all__ = ["ATTENTIONS", "Attention", "aside", "attending"]

_ASIDE: Final[ContextVar[bool]] = ContextVar("studio_aside", default=False)

_torchs: Final[Callable[..., Tensor]] = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Attention:
    """One way to compute attention.

    Args:
        what: what it is, for lists.
        compute: takes what ``torch.nn.functional.scaled_dot_product_attention`` takes; None: that itself.
        check: raises where a device cannot do it.
    """

    what: str
    compute: Callable[..., Tensor] | None = None
    check: Callable[[torch.device], None] = lambda device: None


ATTENTIONS: Registry[Attention] = Registry("attention")
ATTENTIONS.add("sdpa", Attention("torch's own, by the fastest kernel that fits"))


@contextmanager
def attending(name: str, device: torch.device) -> Iterator[None]:
    """While it lasts, attention that this thread asks torch for is computed in another way.

    Args:
        name: a key of :data:`ATTENTIONS`.
        device: where it is computed.

    Raises:
        UnknownName: there is none of that name.
        DoesNotFit: the device or the model cannot do it.
        MissingPackage: its package is not installed.

    Example:
        >>> q = torch.randn(1, 2, 5, 4)
        >>> with attending("sliced", q.device):
        ...     y = F.scaled_dot_product_attention(q, q, q)
        >>> torch.allclose(y, F.scaled_dot_product_attention(q, q, q), atol=1e-6)
        True
    """
    way = ATTENTIONS[name]
    way.check(device)
    if way.compute is None:
        yield
        return
    answering = _Answering(way.compute)
    with answering:
        yield
    if not answering.calls:
        raise DoesNotFit(
            f"attention={name!r} had no effect: this model does not ask torch for attention (it is compiled, or other "
            "attention processors than diffusers' usual ones are set); leave attention out"
        )


@contextmanager
def aside() -> Iterator[None]:
    """While it lasts, attention is torch's own again: for what is no part of the denoiser, such as text encoders.

    Example:
        >>> q = torch.randn(1, 2, 5, 4)
        >>> with attending("sliced", q.device):
        ...     y = F.scaled_dot_product_attention(q, q, q)
        ...     with aside():
        ...         z = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    """
    before = _ASIDE.set(True)
    try:
        yield
    finally:
        _ASIDE.reset(before)


class _Answering(TorchFunctionMode):
    """Computes what torch is asked for by :attr:`compute`, and counts how often."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.compute, self.calls = compute, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not _torchs or _ASIDE.get():
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.compute(*args, **(kwargs or {}))


def _sliced(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
    """One head of one picture after the other; ``(B, H, L, D)``."""
    rows, heads = query.shape[:2]
    shared = heads // key.shape[1]  # query heads that share a key head
    mask = None if attn_mask is None else attn_mask.expand(rows, heads, query.shape[2], key.shape[2])
    rest.pop("enable_gqa", None)
    parts = [
        _torchs(
            query[row, head][None, None], key[row, head // shared][None, None], value[row, head // shared][None, None],
            attn_mask=None if mask is None else mask[row, head][None, None], **rest,
        )
        for row in range(rows)
        for head in range(heads)
    ]  # fmt: skip
    return torch.cat(parts).unflatten(0, (rows, heads)).squeeze(2)


def _flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
    """Torch's flash kernel or none; ``(B, H, L, D)``."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        warnings.simplefilter("ignore")  # torch says in several why a kernel does not fit
        try:
            return _torchs(query, key, value, attn_mask=attn_mask, **rest)
        except RuntimeError as problem:
            if "No available kernel" not in str(problem):
                raise
    masked = "" if attn_mask is None else ", with a mask"
    raise DoesNotFit(
        f"attention='flash': no flash kernel of torch takes heads of {query.shape[3]} numbers in "
        f"{str(query.dtype).removeprefix('torch.')} on {query.device}{masked}; attention='sdpa' takes it where it fits"
    )


def _check_xformers(device: torch.device) -> None:
    if device.type == "cpu":
        raise DoesNotFit(
            f"attention='xformers' needs a GPU, where {EXTRAS['xformers'].command!r} brings it, and this computes on "
            "the cpu; attention='sdpa' is torch's own"
        )
    need("xformers.ops", "attention='xformers'", extra="xformers")


def _xformers(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """xFormers' memory-efficient attention, which wants ``(B, L, H, D)``."""
    ops: Any = need("xformers.ops", "attention='xformers'", extra="xformers")
    shared = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, 1) if shared > 1 else tensor for tensor in (key, value))
    bias = ops.LowerTriangularMask() if is_causal else _bias(query, key, attn_mask)
    given = (tensor.transpose(1, 2) for tensor in (query, key, value))
    try:
        return ops.memory_efficient_attention(*given, attn_bias=bias, p=dropout_p, scale=scale).transpose(1, 2)
    except NotImplementedError as problem:
        why = str(problem).strip().splitlines()[0]
        raise DoesNotFit(f"attention='xformers': {why:.200}; attention='sdpa' takes what fits") from None


def _bias(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as numbers that are added, ``(B, H, L, S)``, in memory whose rows are a multiple of 8 long."""
    if mask is None:
        return None
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    rows, heads, length = query.shape[:3]
    whole = mask.to(query.dtype).expand(rows, heads, length, key.shape[2])
    return F.pad(whole, (0, -key.shape[2] % 8))[..., : key.shape[2]]


ATTENTIONS.add("sliced", Attention("one head of one picture after the other: slowest, least memory", _sliced))
ATTENTIONS.add("flash", Attention("torch's flash kernel, refused where it does not fit", _flash))
ATTENTIONS.add("xformers", Attention("xFormers' memory-efficient kernels", _xformers, _check_xformers))
