"""Prompts as conditioning: encoded once where the text encoder stays as it is, at each step where it is trained."""

from __future__ import annotations

import functools
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
        self._encoded: dict[str, Conditioning] = {}

    @torch.no_grad()
    def prepare(self, texts: Sequence[str]) -> None:
        """Encodes ``texts`` by the bare base, one at a time, so that no text depends on its neighbours."""
        for text in dict.fromkeys(texts):
            if text not in self._encoded:
                self._encoded[text] = self._found(text)

    def frozen(self, texts: Sequence[str]) -> Conditioning:
        """Returns what the bare base makes of ``texts``, which must have been prepared."""
        return functools.reduce(Conditioning.cat, [self._encoded[text] for text in texts])

    def live(self, texts: Sequence[str]) -> Conditioning:
        """Returns what the text encoder makes of ``texts`` now, with gradients; each different text is encoded once."""
        different = list(dict.fromkeys(texts))
        if self.base.family.roles and "" in different:
            different = [*filter(None, different), ""]
            halves = [self._encode(different[:-1]), self._encode([""])] if different[:-1] else [self._encode([""])]
            encoded = functools.reduce(Conditioning.cat, halves)
        else:
            encoded = self._encode(different)
        return encoded.rows([different.index(text) for text in texts])

    def _encode(self, texts: Sequence[str]) -> Conditioning:
        """No caption is encoded as what guidance leads away from: it teaches what that is."""
        return self.base.family.encode_text(self.base.pipe, list(texts), not any(texts))

    def _found(self, text: str) -> Conditioning:
        from studio.datasets.cache import content_key

        key = content_key("text", self.base.fingerprint, text)
        found = self.cache.get(key)
        if found is None:
            row = self._encode([text])
            found = {name: tensor.cpu().contiguous() for name, tensor in row.to(dtype=torch.float32).tensors().items()}
            self.cache.put(key, found)
        denoiser = getattr(self.base.pipe, self.base.family.denoiser)
        return Conditioning.of(found).to(denoiser.device, denoiser.dtype)
