"""Places: where in the picture, or in which context of the prompt, each token of a denoiser's layers stands.

Everything that depends on the place (how strongly an adapter acts there, which words it asks) is looked up in one list
of places: first the ``N`` tokens of the picture row by row, then the ``K`` contexts, then one for what has no place of
its own (what fills up a row), which stands for the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.errors import DoesNotFit
from studio.families.conditioning import Conditioning
from studio.families.streams import Attending, Streams

__all__ = ["Places"]

Grid = tuple[int, int]


class Places:
    """The tokens of one call of a denoiser.

    Args:
        streams: of its family.
        cells: rows and columns of the latents.
        conditioning: the words of its rows; under guidance the negative prompts' rows stand first.
    """

    def __init__(self, streams: Streams, cells: Grid, conditioning: Conditioning) -> None:
        self.streams, self.cells = streams, cells
        self.parts, self.batch = conditioning.parts, len(conditioning.tokens)
        length, mask = conditioning.tokens.shape[1], conditioning.mask
        counts = mask.sum(1).tolist() if streams.packed and mask is not None else [length]
        self.contexts = [self._behind(count // self.parts, conditioning.tokens.device) for count in counts]
        self.longest = length

    def _behind(self, length: int, device: Any) -> Tensor:
        """The contexts of a row, each of ``length`` words and what fills it up."""
        each = length + -length % self.streams.multiple
        return torch.arange(self.parts, device=device).repeat_interleave(each)

    # -- the tokens of a layer -----------------------------------------------------------------------------------------

    def tokens(self, path: str, tokens: int) -> tuple[Tensor, Grid]:
        """Returns the place of every token of a layer's rows, ``(1 or batch, tokens)``, and the picture's grid.

        Args:
            path: of a layer that computes on the picture, on words or on both.
            tokens: how many it was called with.

        Raises:
            DoesNotFit: the family knows of no such number there.
        """
        stream, flat = self.streams.of(path), self.streams.is_flat(path)
        if stream == "image" and not flat and self.streams.multiple == 1:
            grid = self.streams.grid(self.cells, tokens, path)
            return torch.arange(tokens, device=self.contexts[0].device)[None], grid
        grid = self.streams.grids(self.cells)[0]
        rows = self._rows(stream, grid)
        if flat:
            rows = [torch.cat(rows if len(rows) > 1 else rows * self.batch)]
        return self._filled(rows, tokens, path, grid), grid

    def words(self, tokens: int, path: str = "the words") -> Tensor:
        """Returns the place of every word, ``(1 or batch, tokens)``, in a list without a picture.

        Raises:
            DoesNotFit: the prompt has not so many.
        """
        return self._filled(self._rows("text", (0, 0)), tokens, path, (0, 0))

    def _rows(self, stream: str, grid: Grid) -> list[Tensor]:
        count = grid[0] * grid[1]
        picture = torch.arange(count, device=self.contexts[0].device)
        picture = F.pad(picture, (0, -count % self.streams.multiple), value=count + self.parts)
        words = [context + count for context in self.contexts]
        if stream == "image":
            return [picture]
        if stream == "text":
            return words
        return [torch.cat([picture, row] if self.streams.first == "image" else [row, picture]) for row in words]

    def _filled(self, rows: Sequence[Tensor], tokens: int, path: str, grid: Grid) -> Tensor:
        whole, longest = grid[0] * grid[1] + self.parts, max(map(len, rows))
        if not longest <= tokens <= max(longest, self.longest):
            raise DoesNotFit(
                f"{path} was called with {tokens} tokens, and picture and words have {longest} there: where a region "
                "lies is not known; exclude that layer from adapters with a mask"
            )
        row = pad_sequence(list(rows), batch_first=True, padding_value=whole)
        return F.pad(row, (0, tokens - longest), value=whole)

    # -- what is looked up ---------------------------------------------------------------------------------------------

    def coverage(self, path: str, tokens: int, weights: Tensor, index: int) -> Tensor:
        """Returns how strongly a region acts on every token of a layer, ``(1 or batch, tokens)``.

        Args:
            path: of the layer. tokens: how many it was called with.
            weights: of all contexts at each latent cell, ``(K, h, w)``. index: of the region's context.

        Raises:
            DoesNotFit: the family knows of no such number of tokens there.
        """
        place, grid = self.tokens(path, tokens)
        here = pooled(weights, grid)[index]
        own = here.new_zeros(self.parts)
        own[index] = 1.0
        return torch.cat([here, own, here.mean()[None]])[place]

    def bias(self, kind: Attending, path: str, queries: int, keys: int, weights: Tensor) -> Tensor:
        """Returns what is added to the scores of an attention, ``(1 or batch, 1, queries, keys)``.

        A token of the picture asks the words of a context as much as that weighs there, ``log w``; a context's words
        ask that part of the picture, and no other words.

        Args:
            kind: who asks whom. path: of the attention. queries: how many ask. keys: how many are asked.
            weights: of all contexts at each latent cell, ``(K, h, w)``.

        Raises:
            DoesNotFit: the family knows of no such number of tokens there.
        """
        if kind == "crossed":
            grid = self.streams.grid(self.cells, queries, path)
            asking = torch.arange(queries, device=weights.device)[None]
            asked = self.words(keys, path) + queries
        elif kind == "refined":
            grid, asking, asked = (0, 0), self.words(queries, path), self.words(keys, path)
        else:
            grid = self.streams.grids(self.cells)[0]
            asking = asked = self._filled(self._rows("joint", grid), keys, path, grid)
        count = grid[0] * grid[1]
        table = self._table(pooled(weights, grid) if count else weights.new_zeros(self.parts, 0))
        of_asked = table[asking[:, :, None], (asked - count).clamp(min=0)[:, None, :]]
        if kind == "joined":
            of_asking = table[asked[:, None, :], (asking - count).clamp(min=0)[:, :, None]]
            of_asking = torch.where((asking < count)[:, :, None], torch.zeros_like(of_asking), of_asking)
            of_asked = torch.where((asked < count)[:, None, :], of_asking, of_asked)
        return of_asked[:, None]

    def _table(self, weights: Tensor) -> Tensor:
        """Place by context: the logarithm of the weight with which one asks the other; nobody minds what fills up."""
        apart = torch.full((self.parts, self.parts), float("-inf"), device=weights.device).fill_diagonal_(0.0)
        table = torch.cat([weights.t().log(), apart, apart.new_zeros(1, self.parts)])
        return F.pad(table, (0, 1))


def pooled(weights: Tensor, grid: Grid) -> Tensor:
    """Returns the means of ``weights`` ``(K, h, w)`` over the cells of each token, ``(K, tokens)``."""
    return F.adaptive_avg_pool2d(weights[:, None], grid).flatten(1)
