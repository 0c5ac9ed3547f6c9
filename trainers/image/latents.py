"""The pictures of a folder as latents: resized and cropped, encoded once, cached by content."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from studio.errors import BadConfig, DoesNotFit
from studio.families import Base, Shot
from studio.limits import limit, too_many
from studio.trainers.loop.draws import Draws

if TYPE_CHECKING:
    from studio.datasets.cache import TensorCache
    from studio.datasets.folder import ImageItem

__all__ = ["Crop", "Latents", "picture_size", "sides_of"]

Crop = Literal["center", "random"]


class Latents:
    """The latents of the pictures of a folder.

    Every picture is scaled until it covers the training size and cropped to it, so nothing is distorted; EXIF rotation
    is applied, transparency is laid on white. Encoding takes the mode of the VAE's posterior of one picture at a time,
    so a latent is a pure function of the file, and caching it changes no bit.

    Args:
        base: whose VAE encodes.
        items: the pictures (``studio.datasets.folder.ImageItem``).
        size: width and height in pixels.
        crop: ``"center"``, or ``"random"`` for a new place at each draw (which is then encoded at each draw).
        flip: mirror every second draw at random.
        cache: keeps latents over runs.
    """

    def __init__(
        self,
        base: Base,
        items: Sequence[ImageItem],
        *,
        size: tuple[int, int],
        crop: Crop,
        flip: bool,
        cache: TensorCache,
    ) -> None:
        self.base, self.items, self.size, self.crop, self.flip, self.cache = base, tuple(items), size, crop, flip, cache
        self.ends = list(itertools.accumulate(item.repeats for item in self.items))
        self._made: dict[tuple[int, bool], Tensor] = {}

    def of(self, items: Sequence[ImageItem]) -> Latents:
        """Returns other pictures that are treated in the same way."""
        return Latents(self.base, items, size=self.size, crop=self.crop, flip=self.flip, cache=self.cache)

    def indices(self, draws: Draws, numbers: Sequence[int]) -> list[int]:
        """Returns which picture each sample is; a folder's repeats make its pictures come more often."""
        return [bisect.bisect_right(self.ends, draws.item(n, self.ends[-1])) for n in numbers]

    def draw(self, draws: Draws, numbers: Sequence[int], indices: Sequence[int]) -> Tensor:
        """Returns the latents of the pictures ``indices`` as samples ``numbers`` see them, ``(B, C, h, w)``."""
        return torch.stack([self._latent(draws, n, index) for n, index in zip(numbers, indices, strict=True)])

    def shots(self, draws: Draws, numbers: Sequence[int], indices: Sequence[int]) -> list[Shot]:
        """Returns what the samples ``numbers`` show of the pictures ``indices``: their size, and that of the file."""
        return [self._shot(draws, n, index) for n, index in zip(numbers, indices, strict=True)]

    def prepare(self) -> None:
        """Encodes all pictures, unless each draw crops them anew."""
        if self.crop == "center":
            for index in range(len(self.items)):
                for mirrored in (False, True) if self.flip else (False,):
                    self._cached(index, mirrored)

    def cropped(self) -> list[str]:
        """Returns one line for each picture of which more than a tenth is cut off."""
        shapes = [(item, item.width / item.height * self.size[1] / self.size[0]) for item in self.items]
        lost = [(item, 1 - min(shape, 1 / shape)) for item, shape in shapes]
        return [
            f"{item.file.name} ({item.width} x {item.height}): {share:.0%} lies outside {self.size[0]} x {self.size[1]}"
            for item, share in lost
            if share > 0.1
        ]

    def _shot(self, draws: Draws, n: int, index: int) -> Shot:
        from studio.datasets.picture import kept_corner

        item, generator = self.items[index], draws.generator(n, "crop") if self.crop == "random" else None
        corner = kept_corner((item.width, item.height), self.size, crop=self.crop, generator=generator)
        return Shot(size=self.size[::-1], original=(item.height, item.width), crop=corner)

    def _latent(self, draws: Draws, n: int, index: int) -> Tensor:
        mirrored = self.flip and draws.uniform(n, "flip") < 0.5
        if self.crop == "random":
            return self._encode(index, mirrored, draws.generator(n, "crop"))
        return self._cached(index, mirrored)

    def _cached(self, index: int, mirrored: bool) -> Tensor:
        known = self._made.get((index, mirrored))
        if known is not None:
            return known
        from studio.datasets.cache import content_key

        key = content_key("latent", self.base.hash, self.items[index].digest, self.size, self.crop, mirrored)
        found = self.cache.get(key)
        if found is None:
            found = {"latent": self._encode(index, mirrored, None)}
            self.cache.put(key, found)
        return self._made.setdefault((index, mirrored), found["latent"])

    def pixels(self, index: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns a picture as it is encoded, ``(3, H, W)`` in [-1, 1]; cropped in the middle without a generator."""
        from studio.datasets.picture import fit_image, open_image, to_pixels

        crop: Crop = "center" if generator is None else self.crop
        return to_pixels(fit_image(open_image(self.items[index]), *self.size, crop=crop, generator=generator))

    @torch.no_grad()
    def _encode(self, index: int, mirrored: bool, generator: torch.Generator | None) -> Tensor:
        picture = self.pixels(index, generator)
        picture = picture.flip(2).contiguous() if mirrored else picture
        latents = self.base.family.encode_image(self.base.pipe, picture[None], None)
        return latents[0].float().cpu()


def picture_size(resolution: int | Sequence[int] | None, base: Base) -> tuple[int, int]:
    """Returns width and height of the pictures to train on.

    Args:
        resolution: a side in pixels, width and height, or None for the base's own.
        base: the base, whose sides must be multiples of ``base.multiple``.

    Raises:
        BadConfig: as :func:`sides_of`.
        DoesNotFit: sides that the base cannot have; the nearest ones are named.
    """
    if resolution is None:
        return base.native
    sides = sides_of(resolution)
    unit = base.multiple
    if any(side % unit for side in sides):
        near = " x ".join(str(max(unit, round(side / unit) * unit)) for side in sides)
        raise DoesNotFit(f"resolution {sides[0]} x {sides[1]}: sides of {base.id} are multiples of {unit}; use {near}")
    return sides[0], sides[1]


def sides_of(resolution: int | Sequence[int]) -> tuple[int, int]:
    """Returns width and height in pixels of what a resolution says, whatever the base.

    Raises:
        BadConfig: not one or two positive whole numbers, or more pixels than pictures may have.
    """
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BadConfig(f"resolution={resolution!r}: give one side in pixels, or width and height")
    if max(sides) > limit("side"):
        raise BadConfig(f"resolution {sides[0]} x {sides[1]}: {too_many('side')}")
    return sides[0], sides[1]
