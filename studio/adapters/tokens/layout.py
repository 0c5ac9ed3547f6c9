"""Where virtual tokens stand in a batch.

A row is laid out as ``[padding][prompts that are on][text]``: as if the prompt had been typed before the text and the
batch then padded. So each row computes what it computes alone, whatever side the padding is on. Prompts that are off in
a row are masked there. They stand with the padding where positions can be given, so that what is generated later
follows the text; else behind the text, so that positions counted by index stay right.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Layout"]

_IGNORED = -100
"""The label of a column that does not count."""


class Layout:
    """The places of ``M`` virtual tokens and ``L`` tokens of text in each row.

    Args:
        on: which virtual tokens act ``(B, M)``, true or false.
        length: ``L``.
        mask: the attention mask of the text ``(B, L)``, or None where all of it is read.
        counted: whether positions can be given. everywhere: whether all act in all rows, where the caller knows.

    Example:
        >>> on, mask = torch.tensor([[True], [False]]), torch.tensor([[0, 1], [1, 1]])
        >>> layout = Layout(on, 2, mask)
        >>> layout.order  # columns: 0 is virtual, 1 and 2 are text
        tensor([[1, 0, 2],
                [1, 2, 0]])
        >>> layout.mask
        tensor([[0, 1, 1],
                [1, 1, 0]])
    """

    def __init__(
        self, on: Tensor, length: int, mask: Tensor | None, *, counted: bool = False, everywhere: bool | None = None
    ) -> None:
        self.on, self.length, self.given = on, length, mask
        self.everywhere = bool(on.all()) if everywhere is None else everywhere  # asking a GPU would make it wait
        self.off = 0 if counted else 3
        self.virtual = on.shape[1]
        self.order = self._order(self.off)

    def _order(self, off: int) -> Tensor | None:
        """Which column ``(B, M + L)`` stands where; None where prompts simply come first."""
        padding = None if self.given is None else self.given.to(torch.bool).logical_not().cumprod(1).bool()
        if (padding is None or not bool(padding.any())) and self.everywhere:
            return None
        prompts = torch.where(self.on, 1, off)
        text = self.on.new_zeros((self.on.shape[0], self.length), dtype=torch.long) + 2
        if padding is not None:
            text = torch.where(padding, 0, text)
        return torch.cat([prompts, text], dim=1).argsort(dim=1, stable=True)

    def place(self, prompts: Tensor, text: Tensor) -> Tensor:
        """Puts virtual columns ``prompts`` ``(B, M, ...)`` and those of ``text`` ``(B, L, ...)`` in their places."""
        whole = torch.cat([prompts.to(text.dtype), text], dim=1)
        return whole if self.order is None else _gather(whole, self.order)

    def text(self, whole: Tensor) -> Tensor:
        """Takes the columns of the text ``(B, L, ...)`` out of ``whole`` ``(B, M + L, ...)``."""
        if self.order is None:
            return whole[:, self.virtual :]
        return _gather(whole, self.order.argsort(dim=1)[:, self.virtual :])

    def shown(self, whole: Tensor) -> Tensor:
        """Puts the columns of ``whole`` ``(B, M + L, ...)`` so that each row ends with its text, as :meth:`labels`."""
        order = self._order(0)
        if self.order is None or order is None or self.off == 0 or self.everywhere:
            return whole
        return _gather(_gather(whole, self.order.argsort(dim=1)), order)

    def labels(self, given: Tensor, *, shifted: bool) -> Tensor:
        """Puts labels ``(B, L)`` beside the columns of :meth:`shown` ``(B, M + L)``; virtual tokens have none.

        Args:
            given: the labels of the text, ``(B, L)``.
            shifted: whether a label is compared with what the column before says: then the first token of a row counts
                where a virtual one stands before it, and does not where none acts.

        Example:
            >>> both = Layout(torch.tensor([[True], [False]]), 2, None, counted=True)
            >>> both.labels(torch.tensor([[7, 8], [7, 8]]), shifted=True)
            tensor([[-100,    7,    8],
                    [-100, -100,    8]])
        """
        if shifted and not self.everywhere:
            read = torch.ones_like(given) if self.given is None else self.given.to(given.device).long()
            first = (read.cumsum(1) == 1) & (read == 1)
            given = given.masked_fill(first & ~self.on.any(1, keepdim=True).to(given.device), _IGNORED)
        whole = torch.cat([given.new_full((len(given), self.virtual), _IGNORED), given], dim=1)
        order = self._order(0)
        return whole if order is None else _gather(whole, order.to(given.device))

    @property
    def mask(self) -> Tensor | None:
        """The mask of all columns ``(B, M + L)``; None where everything is read."""
        if self.given is None and self.order is None:
            return None
        text = self.given
        if text is None:
            text = self.on.new_ones((self.on.shape[0], self.length), dtype=torch.long)
        return self.place(self.on, text)

    @property
    def ahead(self) -> Tensor:
        """How many virtual tokens act in each row ``(B, 1)``."""
        return self.on.sum(1, keepdim=True)

    def positions(self, given: Tensor) -> Tensor:
        """Positions of all columns, from those of the text, ``given`` ``(..., B or 1, L)``."""
        given = given.expand(*given.shape[:-2], self.on.shape[0], self.length)
        ahead = self.ahead.to(given.dtype)
        prompts = (self.on.cumsum(1) - 1).clamp_min(0).to(given.dtype).expand(*given.shape[:-1], self.virtual)
        whole = torch.cat([prompts, given + ahead], dim=-1)
        return whole if self.order is None else whole.gather(-1, self.order.expand_as(whole))


def counted(mask: Tensor) -> Tensor:
    """Positions of the columns of a mask ``(B, L)``, counted from the first that is read.

    Example:
        >>> counted(torch.tensor([[0, 0, 1, 1]]))
        tensor([[0, 0, 0, 1]])
    """
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _gather(whole: Tensor, order: Tensor) -> Tensor:
    index = order.reshape(*order.shape, *(1,) * (whole.dim() - 2)).expand(-1, -1, *whole.shape[2:])
    return whole.gather(1, index)
