"""What prompts become for a denoiser, and what is asked of one picture besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Conditioning", "Shot"]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What is asked of one picture and stands in no prompt; never cached with the text.

    Args:
        size: height and width in pixels, as made.
        original: height and width of the file that a training picture comes from; None: as made.
        crop: top and left of what a training picture shows, in pixels of the scaled file.
        embedded: the guidance that the denoiser embeds; None where it embeds none.
    """

    size: tuple[int, int]
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    embedded: float | None = None


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row per prompt.

    Args:
        tokens: hidden states of the text encoder, ``(B, L, D)``; rows that are shorter than L end in zeros.
        pooled: one vector per prompt, ``(B, P)``, for the families that have one.
        extra: further tensors with B rows by name (size ids, embedded guidance).
        mask: which tokens count, bool ``(B, L)``; None: all of them.
        parts: how many contexts of equal length stand behind each other in a row, where regions of a picture read
            words of their own.

    Example:
        >>> both = Conditioning(torch.zeros(1, 4, 8)).cat(Conditioning(torch.ones(2, 4, 8)))
        >>> both.tokens.shape, both.rows([2, 0]).tokens[:, 0, 0].tolist()
        (torch.Size([3, 4, 8]), [1.0, 0.0])
        >>> Conditioning(torch.ones(1, 2, 8)).cat(Conditioning(torch.ones(1, 3, 8))).mask.int().tolist()
        [[1, 1, 0], [1, 1, 1]]
    """

    tokens: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    parts: int = 1

    def rows(self, index: Sequence[int] | Tensor | slice) -> Conditioning:
        """Returns the rows of ``index`` (with repetition where it repeats), in its order."""
        key = index if isinstance(index, slice) else torch.as_tensor(index, device=self.tokens.device)
        return self._map(lambda tensor: tensor[key])

    def cat(self, other: Conditioning) -> Conditioning:
        """Returns the rows of both, first mine, then the other's; shorter ones are filled up and masked.

        Raises:
            ValueError: one side has tensors that the other lacks, which is a mistake in a family's row.
        """
        if (self.pooled is None) != (other.pooled is None) or self.extra.keys() != other.extra.keys():
            raise ValueError("two halves of a batch have different parts: both must come from one family")
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        masked = any(one.mask is not None or one.tokens.shape[1] != length for one in (self, other))
        first, second = self._filled(length, masked), other._filled(length, masked)
        return first._map(lambda tensor, same: torch.cat([tensor, same]), second)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Returns the same on another device, its floating point numbers in another dtype; a mask stays one."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def detach(self) -> Conditioning:
        """Returns the same cut off from autograd, for caches."""
        return self._map(Tensor.detach)

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything by name, for caches; :meth:`of` takes it back."""
        named = {"tokens": self.tokens, "pooled": self.pooled, "mask": self.mask}
        named |= {f"extra.{name}": tensor for name, tensor in self.extra.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Makes the conditioning of which :meth:`tensors` gave the parts."""
        extra = {name.removeprefix("extra."): value for name, value in tensors.items() if name.startswith("extra.")}
        return cls(tensors["tokens"], tensors.get("pooled"), extra, tensors.get("mask"))

    def _filled(self, length: int, masked: bool) -> Conditioning:
        """The same with rows of ``length`` tokens, and with a mask where there shall be one."""
        rows, here = self.tokens.shape[:2]
        if not masked:
            return self
        mask = self.mask if self.mask is not None else self.tokens.new_ones(rows, here, dtype=torch.bool)
        tokens = F.pad(self.tokens, (0, 0, 0, length - here))
        return replace(self, tokens=tokens, mask=F.pad(mask, (0, length - here)))

    def _map(self, change: Callable[..., Tensor], *others: Conditioning) -> Conditioning:
        """Changes every tensor, together with those of the same name of ``others``."""
        beside = [other.tensors() for other in others]
        changed = {name: change(tensor, *(other[name] for other in beside)) for name, tensor in self.tensors().items()}
        return replace(Conditioning.of(changed), parts=self.parts)
