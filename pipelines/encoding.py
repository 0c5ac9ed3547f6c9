"""Prompts that are encoded once: what the text encoders made of a prompt is kept while nothing about them changes.

What is kept is the row of one prompt in a batch of so many rows, which is the same to the bit whatever stands in the
other rows (:mod:`studio.pipelines.sample` says why), so that pictures are equal to those without. It is forgotten when
a weight of an encoder is another tensor or was written to, and read anew under every blend that acts on an encoder.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters.hosting.attached import assemblies
from studio.families import Base, Conditioning
from studio.families.vocabulary import learned
from studio.families.words import Words
from studio.limits import limit

__all__ = ["encoded", "forget"]

Acting = tuple[object, ...]
"""By what the blend on the encoders is known."""


def encoded(base: Base, prompts: Sequence[str | Words], negative: bool) -> Conditioning:
    """Returns what the family's ``encode_text`` returns, of prompts that were encoded before from memory.

    Args:
        base: whose text encoders read. prompts: one per row of the batch.
        negative: whether guidance leads away from them.

    Raises:
        DoesNotFit: a prompt that is too long.
    """
    acting = _acting(base)
    if acting is None or torch.is_grad_enabled():
        return base.family.encode_text(base.pipe, prompts, negative)
    held = _HELD.get(base.pipe)
    if held is None:
        held = _HELD[base.pipe] = _Texts()
    held.check(base)
    return held.read(base, prompts, negative, acting)


def forget(pipe: Any) -> None:
    """Forgets what was encoded by a pipeline.

    Args:
        pipe: the diffusers pipeline.
    """
    _HELD.pop(pipe, None)


class _Texts:
    """The encoded prompts of one pipeline, the least recently used of which go first."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[object, ...], Conditioning] = OrderedDict()
        self._weights: list[tuple[weakref.ref[Tensor], tuple[object, ...]]] = []

    def check(self, base: Base) -> None:
        """Forgets everything if the encoders are not as they were."""
        now = list(_weights(base))
        same = len(now) == len(self._weights) and all(
            tensor is known() and _state(tensor) == state
            for tensor, (known, state) in zip(now, self._weights, strict=False)
        )
        if not same:
            self._rows.clear()
            self._weights = [(weakref.ref(tensor), _state(tensor)) for tensor in now]

    def read(self, base: Base, prompts: Sequence[str | Words], negative: bool, acting: Acting) -> Conditioning:
        family, pipe, count = base.family, base.pipe, len(prompts)
        if len({family.row_length(pipe, prompt, negative) for prompt in prompts}) > 1:
            return family.encode_text(pipe, prompts, negative)  # a row is filled up to the longest beside it
        # kernels may round otherwise for another number of threads, or when told how to compute attention
        kernels = (torch.get_num_threads(), base.saving.attention)
        how = (negative and family.roles, count, family.encode_text, kernels, acting)
        keys = {prompt: (prompt, *how) for prompt in prompts}
        rows = {prompt: self._rows[key] for prompt, key in keys.items() if key in self._rows}
        missing = [prompt for prompt in keys if prompt not in rows]
        if missing:
            made = family.encode_text(pipe, [*missing, *[missing[-1]] * (count - len(missing))], negative)
            rows |= {prompt: made.rows([place]) for place, prompt in enumerate(missing)}
        for prompt, key in keys.items():
            self._rows[key] = rows[prompt]
            self._rows.move_to_end(key)
        self._bound()
        return _joined([rows[prompt] for prompt in prompts])

    def _bound(self) -> None:
        """Lets go of what is over the limit."""
        size = sum(map(_bytes, self._rows.values()))
        while size > limit("cached-text-bytes"):
            size -= _bytes(self._rows.popitem(last=False)[1])


_HELD: Final[weakref.WeakKeyDictionary[Any, _Texts]] = weakref.WeakKeyDictionary()


def _acting(base: Base) -> Acting | None:
    """What acts on the encoders; None where nothing is to be kept: a training, or rows with blends of their own."""
    found: list[object] = [tuple(learned(base.pipe).items())]
    for component, assembly in assemblies(base.pipe).items():
        levels = assembly.levels
        if component not in base.family.readers:
            continue
        trained = any(one.trainable for name in assembly.records for _, one in assembly.adapters(name))
        own = levels.samples is not None or levels.silent or levels.muted or levels.factors
        if trained or own or not all(strength.constant for strength in levels.strengths.values()):
            return None
        found.append((component, tuple(levels.strengths.items()), levels.baked is None))
    return tuple(found)


def _weights(base: Base) -> Iterator[Tensor]:
    """All tensors of the encoders, those of adapters included."""
    for name in base.family.readers:
        encoder = base.pipe.components.get(name)
        for module in encoder.modules() if isinstance(encoder, nn.Module) else ():
            for table in (module._parameters, module._buffers):
                yield from (tensor for tensor in table.values() if tensor is not None)


def _joined(rows: Sequence[Conditioning]) -> Conditioning:
    """The rows as one batch, in new tensors."""
    parts = [row.tensors() for row in rows]
    return Conditioning.of({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _bytes(row: Conditioning) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.tensors().values())


def _state(tensor: Tensor) -> tuple[object, ...]:
    return 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device
