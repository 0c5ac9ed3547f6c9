"""Upscale and redraw: a picture is drawn at its size, scaled up, and drawn again from there.

The picture is scaled by Lanczos in pixels, and denoised again with its own prompt, seed and scheduler from a strength
on, as a given picture is (:mod:`studio.pipelines.start`). A1111 calls it "Hires. fix"; as there, the steps are those
that are done.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from studio.errors import BadConfig
from studio.families import Base
from studio.limits import limit, too_many
from studio.pipelines.batching import batches
from studio.pipelines.request import Request
from studio.pipelines.sample import Picture, sample
from studio.pipelines.schedulers import sampler_from_record
from studio.pipelines.start import Given, first_step
from studio.pipelines.watching import Watch

__all__ = ["draw_twice", "second_request"]


def draw_twice(base: Base, requests: Sequence[Request], *, rows: int, watch: Watch) -> Iterator[Picture]:
    """Makes one picture per request, those that ask for it in two passes; all is checked before the first is drawn.

    Args:
        base: what denoises. requests: the pictures. rows: images per batch. watch: who is told how far it is.

    Yields:
        The pictures of one pass as they come, and then the others.

    Raises:
        BadConfig: see :func:`sample`; or no number of steps fits a strength. UnknownName: see :func:`sample`.
        DoesNotFit: see there. StudioError: see there.
    """
    again = [index for index, request in enumerate(requests) if request.upscale is not None]
    if not again:
        return sample(base, requests, rows=rows, watch=watch)
    sample(base, requests, rows=rows)  # checks them: what follows counts on numbers that are right
    blank = [second_request(base, requests[index]) for index in again]
    sample(base, blank, rows=rows)
    behind = sum(blank[batch[0]].steps for batch in batches(base, blank, rows))
    first = sample(base, requests, rows=rows, watch=replace(watch, behind=behind))
    before = sum(requests[batch[0]].steps for batch in batches(base, requests, rows))
    return _drawn(base, requests, rows, first, replace(watch, before=before, places=again))


def _drawn(
    base: Base, requests: Sequence[Request], rows: int, first: Iterator[Picture], watch: Watch
) -> Iterator[Picture]:
    waiting: dict[int, Picture] = {}
    for picture in first:
        if requests[picture.index].upscale is None:
            yield picture
        else:
            waiting[picture.index] = picture
    schedulers: dict[str, Any] = {}  # one object for equal ones, or they would not share a batch
    second = []
    for index in watch.places:
        made = waiting[index]
        key = json.dumps(made.sampler.record, sort_keys=True)
        scheduler = schedulers.setdefault(key, sampler_from_record(made.sampler.record))
        second.append(replace(second_request(base, requests[index], made.image), scheduler=scheduler))
    for picture in sample(base, second, rows=rows, watch=watch):
        index = watch.places[picture.index]
        yield Picture(index, picture.image, waiting[index].sampler)


def second_request(base: Base, request: Request, image: Image.Image | None = None) -> Request:
    """Returns the request of the second pass.

    Args:
        base: which draws it.
        request: of the first pass, which asks for a second.
        image: what the first pass has drawn; None: it is still to come, and this request is for checks.

    Raises:
        BadConfig: it would be too large, or no number of steps does as many of them at this strength.
    """
    upscale, unit = request.upscale, base.multiple
    assert upscale is not None, "there is a second pass"
    width, height = (max(1, round(side * upscale.factor / unit)) * unit for side in (request.width, request.height))
    if max(width, height) > limit("side"):
        raise BadConfig(f"upscale={upscale.factor} makes {width} x {height} pixels: {too_many('side')}")
    size = (width, height)
    larger = Image.new("RGB", size) if image is None else image.resize(size, Image.Resampling.LANCZOS)
    mask = None if request.given is None else request.given.mask
    mask = None if mask is None else mask.resize(size, Image.Resampling.NEAREST)
    given = Given(image=larger, strength=upscale.strength, mask=mask)
    steps = _whole_course(base, given, request.steps if upscale.steps is None else upscale.steps)
    return replace(request, width=width, height=height, steps=steps, given=given, upscale=None)


def _whole_course(base: Base, given: Given, steps: int) -> int:
    """How many steps a whole denoising has of which a given picture goes through so many.

    Raises:
        BadConfig: none has.
    """
    about = steps / given.strength
    near = range(max(steps, math.floor(about) - 1), math.ceil(about) + 2)
    for total in sorted(near, key=lambda total: abs(total - about)):
        with contextlib.suppress(BadConfig):  # of so few steps the part is none
            if total - first_step(base, given, total) == steps:
                return total
    raise BadConfig(f"no denoising has {steps} steps in its last part of {given.strength}; give another strength")
