"""The heat map of an adapter's strength: a cell per block and kind, darker the larger."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.files.magnitude import Magnitude, Magnitudes
from studio.files.places import KINDS, Kind
from studio.pipelines.heat import DEEP, NOTHING, mixed
from studio.pipelines.strength_map import CELL, _Map, figure, strength_map

Q, K, FF = Kind("attention", "q"), Kind("attention", "k"), Kind("feed-forward", "in")


def report(*layers) -> Magnitudes:
    made = tuple(
        Magnitude(f"unet.{block}.{kind.part}", block, kind, norm, "change", 64) for block, kind, norm in layers
    )
    return Magnitudes(Path("dog.safetensors"), "lora", "sd1", made)


def colour(image, drawn, block, kind):
    return image.getpixel((drawn.columns[kind] + 1, drawn.rows[block] + 1))


def test_a_cell_is_as_dark_as_its_norm_and_empty_where_there_is_no_layer():
    said = report(("IN01", Q, 4.0), ("IN01", FF, 1.0), ("M00", Q, 0.0))
    drawn = _Map(said, "dog")
    image = drawn.draw()
    assert colour(image, drawn, "IN01", Q) == DEEP  # the largest
    assert colour(image, drawn, "IN01", FF) == mixed(DEEP, 0.5)  # the root of a quarter
    assert colour(image, drawn, "M00", Q) == mixed(DEEP, 0.0) and colour(image, drawn, "M00", FF) == NOTHING


def test_bars_are_as_long_as_the_blocks_sums():
    said = report(("IN01", Q, 3.0), ("IN01", K, 4.0), ("OUT03", Q, 2.5))
    drawn = _Map(said, "dog")
    image = drawn.draw()
    long = [
        sum(image.getpixel((x, drawn.rows[block] + 5)) == DEEP for x in range(drawn.bars, drawn.width))
        for block in ("IN01", "OUT03")
    ]
    assert long[0] == pytest.approx(2 * long[1], abs=2)  # 5 and 2.5


def test_many_blocks_and_all_kinds_stay_inside_the_sheet():
    layers = [(f"D{n:02}", kind, 1.0 + n) for n in range(57) for kind in KINDS]
    drawn = _Map(report(*layers), "x" * 300)
    image = drawn.draw()
    assert image.width == drawn.width >= max(drawn.columns.values()) + CELL
    assert image.height > max(drawn.rows.values()) + drawn.high and image.height < 1600
    edge = {image.getpixel((image.width - 1, y)) for y in range(image.height)}
    assert edge == {(255, 255, 255)}


def test_an_adapter_of_zeros_is_drawn():
    assert strength_map(report(("IN01", Q, 0.0))).size[0] > 100


def test_figures_have_three_digits():
    assert [figure(one) for one in (0.0, 1.0, 26.0, 99.96, 187.2, 12345678.0, 0.00123, 0.0000123)] == [
        "0", "1.00", "26.0", "100", "187", "1.2e+07", "0.00123", "1.2e-05",
    ]  # fmt: skip
