"""Regions: adapters that act in a part of the picture each, all in one pass of the denoiser.

- Every mask is a region with words of its own: the prompt as the text encoders read it under the adapters of that
  region. The contexts stand behind each other, and the key and value of a context's words are changed by its adapters.
- A token of the picture asks the words of a region as much as that covers it (``log`` of the mask is added to the
  scores), and the words under what acts everywhere as much as no mask covers it.
- In the layers that compute on the picture, an adapter acts on each token as much as its mask covers it
  (:mod:`studio.adapters.hosting.regions`). Tokens of the picture ask each other everywhere, so that it stays one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.adapters import Strength, blended, current_blend
from studio.adapters.contract.mask import Mask
from studio.adapters.hosting.attached import assemblies
from studio.errors import BadConfig, DoesNotFit
from studio.families import Base, Conditioning, components
from studio.families.biasing import biased
from studio.families.places import Places
from studio.pipelines.acting import blend_of
from studio.pipelines.request import Request

__all__ = ["Regions", "check_masks", "masks_of", "regions_of", "within"]

FAINT = 0.5 / 255
"""Parts of the picture that masks leave free by less than pictures can say are not free."""
ASPECT = 0.01
"""By which part a mask may be wider or higher than the picture, as rounding to pixels makes it."""


def masks_of(blend: Mapping[str, Any]) -> list[Mask]:
    """Returns the masks of a blend, each once, in the order of its names."""
    found = [one.mask for _, one in sorted(blend.items()) if isinstance(one, Strength) and one.mask is not None]
    return list(dict.fromkeys(found))


def check_masks(blend: Mapping[str, Any], width: int, height: int) -> None:
    """Checks that the masks of a blend have the shape of the picture.

    Args:
        blend: adapter name -> strength. width: of the picture, in pixels. height: likewise.

    Raises:
        BadConfig: one has not; it would be stretched.
    """
    for name, strength in blend.items():
        mask = strength.mask if isinstance(strength, Strength) else None
        if mask is not None and abs(mask.width * height / (mask.height * width) - 1) > ASPECT:
            raise BadConfig(
                f"the mask of {name!r} has {mask.width} x {mask.height} pixels and the picture {width} x {height}, "
                "which is of another shape; make the mask as wide for its height as the picture"
            )


def regions_of(base: Base, request: Request) -> Regions | None:
    """Returns the regions of a picture, or None where all acts everywhere.

    Args:
        base: which draws. request: the picture, or one of a batch that has one blend.
    """
    masks, down = masks_of(blend_of(base, request) or {}), base.downscale
    cells = (request.height // down, request.width // down)
    return Regions(base, masks, cells, base.pipe._execution_device) if masks else None


class Regions:
    """The regions of the pictures of a batch.

    Args:
        base: which draws.
        masks: of the regions, each once.
        cells: rows and columns of the latents.
        device: where the denoiser computes.

    Attributes:
        contexts: the mask of each context of the words, None for that under what acts everywhere.
        weights: how much each context counts at each cell of the latents, ``(K, h, w)``.
    """

    def __init__(self, base: Base, masks: Sequence[Mask], cells: tuple[int, int], device: Any = None) -> None:
        self.streams, self.readers, self.cells = base.family.streams, base.family.readers, cells
        planes = torch.cat([F.adaptive_avg_pool2d(mask.tensor()[None], cells) for mask in masks])
        free = (1 - planes.sum(0)).clamp(min=0)
        free[free < FAINT] = 0.0
        self.contexts: list[Mask | None] = [*([None] if free.any() else []), *masks]
        self.weights = (torch.cat([free[None], planes]) if free.any() else planes).to(device)
        self._index = {mask: number for number, mask in enumerate(self.contexts) if mask is not None}
        self._means = dict(zip(self.contexts, self.weights.mean((1, 2)).tolist(), strict=True))
        self._words: Conditioning | None = None
        self._places: Places | None = None
        self._known: dict[tuple[Any, ...], Tensor] = {}

    # -- the words -----------------------------------------------------------------------------------------------------

    def read(self, pipe: Any, encode: Callable[[], Conditioning]) -> Conditioning:
        """Returns the words of all regions, behind each other.

        Args:
            pipe: the pipeline whose text encoders read. encode: reads under the blend that acts meanwhile.
        """
        blend, read = current_blend(pipe), []
        parts = {part: set(one.records) for part, one in assemblies(pipe).items() if part in self.readers}
        reading = set().union(*parts.values())
        alike = not any(one.mask is not None for name, one in blend.items() if name in reading)
        for mask in self.contexts[:1] if alike else self.contexts:
            with blended(pipe, _seen(blend, mask)):
                read.append(encode())
        return _beside(read * (len(self.contexts) if alike else 1), list(self._means.values()))

    # -- where tokens are: what the layers and the attentions ask ------------------------------------------------------

    def place(self, conditioning: Conditioning) -> None:
        """Says with which words the denoiser is called now."""
        if conditioning is not self._words:
            self._words, self._places = conditioning, Places(self.streams, self.cells, conditioning)
            self._known.clear()

    def mean(self, mask: Mask) -> float:
        """Returns the part of the picture that the mask covers."""
        return self._means[mask]

    def is_whole(self, path: str) -> bool:
        """Says whether the output of a layer belongs to the whole picture at once."""
        return self.streams.of(path) == "vector"

    def fits(self, path: str, count: int) -> bool:
        """Says whether a layer is called with ``count`` tokens."""
        key = ("fits", self.streams.of(path), self.streams.is_flat(path), count)
        if key not in self._known:
            try:
                self._known[key] = self._placed().tokens(path, count)[0]
            except DoesNotFit:
                return False
        return True

    def plane(self, mask: Mask, path: str, size: tuple[int, int]) -> Tensor:
        """Returns the coverage of a map of channels, ``(h, w)``.

        Raises:
            DoesNotFit: the layer computes at no resolution of the family.
        """
        self.streams.grid(self.cells, size[0] * size[1], path)
        key = ("plane", mask, size)
        if key not in self._known:
            self._known[key] = F.adaptive_avg_pool2d(self.weights[self._index[mask]][None], size)[0]
        return self._known[key]

    def tokens(self, mask: Mask, path: str, count: int) -> Tensor:
        """Returns the coverage of a row of tokens, ``(1 or batch, count)``.

        Raises:
            DoesNotFit: the layer was called with other tokens than the family says.
        """
        key = ("tokens", mask, self.streams.of(path), self.streams.is_flat(path), count)
        if key not in self._known:
            self._known[key] = self._placed().coverage(path, count, self.weights, self._index[mask])
        return self._known[key]

    def bias(self, kinds: Mapping[str, Any], path: str, queries: int, keys: int) -> Tensor:
        """Returns what is added to the scores of an attention, ``(1 or batch, 1, queries, keys)``.

        Args:
            kinds: path of an attention -> who asks whom. path: of this one. queries: how many ask.
            keys: how many are asked.

        Raises:
            DoesNotFit: the attention was called with other tokens than the family says.
        """
        key = ("bias", kinds[path], queries, keys)
        if key not in self._known:
            self._known[key] = self._placed().bias(kinds[path], path, queries, keys, self.weights)
        return self._known[key]

    def _placed(self) -> Places:
        assert self._places is not None, "the denoiser is called after place(...)"
        return self._places


@contextmanager
def within(base: Base, regions: Regions | None) -> Iterator[None]:
    """While it lasts, the denoiser's adapters act in their regions, and words are asked by region.

    Args:
        base: which draws. regions: of the batch; None: there are none.

    Raises:
        DoesNotFit: the denoiser is compiled.
    """
    if regions is None:
        yield
        return
    denoiser = components(base.pipe)[base.family.denoiser]
    if any(module._compiled_call_impl is not None for module in denoiser.modules()):
        raise DoesNotFit("a denoiser that is compiled has no regions; draw with masks on a base that is not compiled")
    on = [one.levels for name, one in assemblies(base.pipe).items() if name == base.family.denoiser]
    for levels in on:  # none where adapters are on text encoders alone
        levels.regions = regions
    try:
        with _asking(regions, denoiser):
            yield
    finally:
        for levels in on:
            levels.regions = None


def _asking(regions: Regions, denoiser: nn.Module) -> AbstractContextManager[None]:
    if len(regions.contexts) == 1:
        return nullcontext()
    kinds = regions.streams.attentions(denoiser)
    modules = {path: denoiser.get_submodule(path) for path in kinds}
    return biased(modules, functools.partial(regions.bias, kinds))


def _seen(blend: Mapping[str, Strength], mask: Mask | None) -> dict[str, Strength]:
    """The blend in one region, without masks."""
    here = {name: one for name, one in blend.items() if one.mask in (None, mask)}
    return {name: one.everywhere() for name, one in here.items()}


def _beside(read: Sequence[Conditioning], shares: Sequence[float]) -> Conditioning:
    """Contexts behind each other; what holds for the whole picture is their mean, each by its share."""
    first, masks = read[0], [one.mask for one in read if one.mask is not None]
    pooled = [one.pooled for one in read if one.pooled is not None]
    parts = [share / sum(shares) for share in shares]
    return replace(
        first,
        tokens=torch.cat([one.tokens for one in read], 1),
        mask=torch.cat(masks, 1) if masks else None,
        pooled=torch.stack([one * part for one, part in zip(pooled, parts, strict=True)]).sum(0) if pooled else None,
        parts=len(read),
    )
