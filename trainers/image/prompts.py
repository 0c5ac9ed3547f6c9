"""Prompts as conditioning: encoded once where the text encoder stays as it is, at each step where it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from studio.families import Base, Conditioning

if TYPE_CHECKING:
    from studio.datasets.cache import TensorCache

__all__ = ["Prompts"]


class Prompts:
    """The encoded prompts of a run.

    Args:
        base: whose text encoders encode.
        cache: keeps embeddings of the bare base over runs, keyed by base and text.
    """

    def __init__(self, base: Base, cache: TensorCache) -> None:
        self.base, self.cache = base, cache
        self._row: dict[str, int] = {}
        self._table: Conditioning | None = None

    @torch.no_grad()
    def prepare(self, texts: Sequence[str]) -> None:
        """Encodes ``texts`` by the bare base, one at a time, so that no text depends on its neighbours."""
        for text in dict.fromkeys(texts):
            if text not in self._row:
                row = self._encoded(text)
                self._row[text] = len(self._row)
                self._table = row if self._table is None else self._table.cat(row)

    def frozen(self, texts: Sequence[str]) -> Conditioning:
        """Returns what the bare base makes of ``texts``, which must have been prepared."""
        assert self._table is not None, "prepare() comes first"
        return self._table.rows([self._row[text] for text in texts])

    def live(self, texts: Sequence[str]) -> Conditioning:
        """Returns what the text encoder makes of ``texts`` now, with gradients; each different text is encoded once."""
        different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = self.base.family.encode_text(self.base.pipe, list(different))
        return encoded.rows([different[text] for text in texts])

    def _encoded(self, text: str) -> Conditioning:
        from studio.datasets.cache import content_key

        key = content_key("text", self.base.hash, text)
        found = self.cache.get(key)
        if found is None:
            row = self.base.family.encode_text(self.base.pipe, [text])
            pooled = {} if row.pooled is None else {"pooled": row.pooled}
            tensors = {"tokens": row.tokens, **pooled, **{f"extra.{name}": value for name, value in row.extra.items()}}
            found = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
            self.cache.put(key, found)
        extra = {name.removeprefix("extra."): value for name, value in found.items() if name.startswith("extra.")}
        denoiser = getattr(self.base.pipe, self.base.family.denoiser)
        return Conditioning(found["tokens"], found.get("pooled"), extra).to(denoiser.device, denoiser.dtype)
