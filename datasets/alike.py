"""Pictures that are the same one in several files, without comparing each with each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy

from studio.datasets.folder import ImageItem

__all__ = ["same_pictures"]

ALIKE: Final = 1.5  # mean difference of two thumbnails, of 255, below which the pictures are the same
SHAPE: Final = 0.03  # by which the ratio of their shapes may differ from 1


def same_pictures(items: Sequence[ImageItem]) -> list[tuple[ImageItem, ...]]:
    """Returns groups of pictures that look the same, though their files differ.

    A picture is compared with the first one of each group that can hold it. The mean brightness of two thumbnails
    differs by no more than the thumbnails do, so only pictures of about the same brightness are compared.
    """
    thumbnails = numpy.stack([item.probe.thumbnail for item in items]) if items else numpy.zeros((0, 16, 16, 3))
    means = thumbnails.mean(axis=(1, 2), dtype=numpy.float64)  # (N, 3)
    shapes = numpy.log([item.width / item.height for item in items])
    order = numpy.argsort(means.mean(axis=1), kind="stable")
    brightness = means.mean(axis=1)[order]
    grouped = numpy.zeros(len(items), dtype=bool)
    groups = []
    for place, index in enumerate(order):
        if grouped[index]:
            continue
        near = order[place + 1 : numpy.searchsorted(brightness, brightness[place] + ALIKE, side="right")]
        near = near[~grouped[near]]
        near = near[numpy.abs(shapes[near] - shapes[index]) < SHAPE]
        near = near[numpy.abs(means[near] - means[index]).mean(axis=1) < ALIKE]
        difference = numpy.abs(thumbnails[near].astype(numpy.int16) - thumbnails[index].astype(numpy.int16))
        same = near[difference.mean(axis=(1, 2, 3)) < ALIKE]
        if len(same):
            grouped[same] = grouped[index] = True
            groups.append(tuple(items[number] for number in sorted([index, *same])))
    return sorted(groups, key=lambda group: group[0].file)
