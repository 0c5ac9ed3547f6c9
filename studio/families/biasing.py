"""Numbers that are added to the scores of some of a denoiser's attentions, for the length of one call.

Which attention computes is told by hooks on the modules, and what torch is asked for meanwhile by a mode of this
thread; both are gone afterwards, and the attentions' processors are never touched. So it goes together with whatever
computes attention (:mod:`studio.families.attention`), when it is entered after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from studio.errors import DoesNotFit

__all__ = ["Bias", "biased"]

Bias = Callable[[str, int, int], Tensor]
"""``(path of the attention, queries, keys) -> what is added``, ``(1 or B, 1, queries, keys)``."""

_torchs: Final[Callable[..., Tensor]] = F.scaled_dot_product_attention


@contextmanager
def biased(modules: Mapping[str, nn.Module], bias: Bias) -> Iterator[None]:
    """While it lasts, numbers are added to the scores of attentions: ``softmax(q kᵀ · scale + bias) v``.

    Args:
        modules: the attentions by their paths. bias: what is added.

    Raises:
        DoesNotFit: an attention does not ask torch for what it computes.

    Example:
        >>> class Attention(nn.Module):
        ...     def forward(self, x):
        ...         return F.scaled_dot_product_attention(x, x, x)
        >>> attention, x = Attention(), torch.randn(1, 1, 3, 4)
        >>> apart = torch.full((1, 1, 3, 3), float("-inf"))
        >>> apart[0, 0].fill_diagonal_(0.0)
        tensor([[0., -inf, -inf],
                [-inf, 0., -inf],
                [-inf, -inf, 0.]])
        >>> with biased({"attention": attention}, lambda path, queries, keys: apart):
        ...     y = attention(x)
        >>> torch.allclose(y, x, atol=1e-6), torch.allclose(attention(x), x, atol=1e-6)
        (True, False)
    """
    adding = _Adding(bias)
    with ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_pre_hook(adding.begins(path)).remove)
            stack.callback(module.register_forward_hook(adding.ends).remove)
        stack.enter_context(adding)
        yield


class _Adding(TorchFunctionMode):
    """Adds to what torch is asked for inside of an attention.

    Attributes:
        path: of the attention that computes now, or None. calls: how often it has asked.
    """

    def __init__(self, bias: Bias) -> None:
        super().__init__()
        self.bias, self.calls = bias, 0
        self.path: str | None = None

    def begins(self, path: str) -> Callable[..., None]:
        """Returns the hook that notes that an attention begins."""

        def hook(*_: Any) -> None:
            self.path, self.calls = path, 0

        return hook

    def ends(self, *_: Any) -> None:
        """Notes that it has ended.

        Raises:
            DoesNotFit: it has not asked.
        """
        path, self.path = self.path, None
        if not self.calls:
            raise DoesNotFit(
                f"{path} does not ask torch for its attention (it is compiled, or another attention processor than "
                "diffusers' usual one is set on it), so regions have no effect there; use the usual one"
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not _torchs or self.path is None:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return _biased(self.bias, self.path, *args, **(kwargs or {}))


def _biased(
    bias: Bias, path: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any,
    **rest: Any,
) -> Tensor:  # fmt: skip
    more = bias(path, query.shape[2], key.shape[2]).to(query.dtype)
    if attn_mask is not None:
        hidden = attn_mask.dtype is torch.bool
        more = more.masked_fill(~attn_mask, float("-inf")) if hidden else more + attn_mask
    return _torchs(query, key, value, more, *args, **rest)
