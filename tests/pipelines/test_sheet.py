"""Contact sheets: sizes, places and labels."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from studio.errors import BadConfig
from studio.pipelines.lettering import readable, typeface
from studio.pipelines.sheet import before_after, contact_sheet


def tile(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def count(sheet, colour):
    return int((numpy.asarray(sheet) == numpy.array(colour)).all(-1).sum())


def test_every_picture_is_on_the_sheet_whole_and_enlarged_by_a_whole_factor():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    sheet = contact_sheet([tile(colour) for colour in colours], columns=3)
    for colour in colours:
        assert count(sheet, colour) == 192 * 192
    plain = contact_sheet([tile(colour) for colour in colours], columns=3, enlarge=False)
    for colour in colours:
        assert count(plain, colour) == 64 * 64


def test_pictures_stand_row_by_row():
    sheet = numpy.asarray(contact_sheet([tile((9, 0, 0)), tile((0, 9, 0)), tile((0, 0, 9))], columns=2, enlarge=False))
    places = [
        numpy.argwhere((sheet == numpy.array(colour)).all(-1)).min(0) for colour in ((9, 0, 0), (0, 9, 0), (0, 0, 9))
    ]
    (y1, x1), (y2, x2), (y3, x3) = places
    assert y1 == y2 < y3
    assert x1 == x3 < x2


def test_labels_are_drawn_and_take_their_room():
    images = [tile("white") for _ in range(4)]
    bare = contact_sheet(images, columns=2)
    full = contact_sheet(
        images,
        columns=2,
        labels=["one", "two", "three", "a label so long that it must be broken into several lines"],
        row_labels=["base", "with adapter"],
        column_labels=["on red", "on blue"],
        title="A title",
        subtitle="and a subtitle",
    )
    assert full.width > bare.width
    assert full.height > bare.height
    dark = (numpy.asarray(full.convert("L")) < 120).sum()
    assert dark > 500 > (numpy.asarray(bare.convert("L")) < 120).sum()
    # nothing is written over the margin
    edge = numpy.asarray(full.convert("L"))
    assert edge[:, :8].min() == edge[:, -8:].min() == edge[:8].min() == edge[-8:].min() == 255


def test_other_sizes_keep_their_proportions():
    sheet = contact_sheet([tile((9, 0, 0), (128, 64)), tile((0, 9, 0)), tile((0, 0, 9))], columns=2)
    assert count(sheet, (9, 0, 0)) == 384 * 192
    assert count(sheet, (0, 9, 0)) == count(sheet, (0, 0, 9)) == 192 * 192
    large = contact_sheet([tile((9, 0, 0), (1500, 20)), tile((0, 9, 0), (20, 20))], columns=2)
    assert count(large, (9, 0, 0)) == 1500 * 20


def test_before_after_has_a_column_per_prompt():
    sheet = before_after([tile((9, 0, 0))] * 3, [tile((0, 9, 0))] * 3, ["a", "b", "c"], title="robot")
    pixels = numpy.asarray(sheet)
    before = numpy.argwhere((pixels == numpy.array((9, 0, 0))).all(-1))
    after = numpy.argwhere((pixels == numpy.array((0, 9, 0))).all(-1))
    assert len(before) == len(after) == 3 * 192 * 192
    assert before[:, 0].max() < after[:, 0].min()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: contact_sheet([], columns=2), "at least one picture"),
        (lambda: contact_sheet([tile("red")], columns=0), "columns=0"),
        (lambda: contact_sheet([tile("red")] * 2, columns=2, labels=["a"]), "labels has 1 texts for 2"),
        (lambda: contact_sheet([tile("red")] * 3, columns=2, row_labels=["a"]), "row_labels has 1 texts for 2"),
        (lambda: before_after([tile("red")], [], ["a"]), "a column needs one of each"),
    ],
)
def test_what_does_not_fit_is_refused(call, reason):
    with pytest.raises(BadConfig, match=reason):
        call()


def test_long_labels_are_cut_and_stay_at_their_places():
    """A label never reaches into what stands beside it, however long it is."""
    long = "a very long label of many words, " * 300
    images = [tile((9, 0, 0)), tile((0, 9, 0)), tile((0, 0, 9)), tile((9, 9, 0))]
    words = {"labels": [long] * 4, "row_labels": [long, "x" * 5_000], "column_labels": [long, "short"]}
    sheet = contact_sheet(images, columns=2, title=long, subtitle=long, **words)
    assert sheet.width * sheet.height < 2_000_000
    for colour in ((9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 0)):
        assert count(sheet, colour) == 192 * 192
    edge = numpy.asarray(sheet.convert("L"))
    assert edge[:, :8].min() == edge[:, -8:].min() == edge[:8].min() == edge[-8:].min() == 255


def test_labels_are_written_in_letters_that_the_typeface_has():
    box = bytes(typeface(15).getmask("\U0010ffff"))
    written = readable("ein grüner Bär — à la carte, 64 × 64 … · 0.5")
    assert written == "ein gruner Bar - a la carte, 64 x 64 … · 0.5"
    assert all(letter == " " or bytes(typeface(15).getmask(letter)) != box for letter in written)
    assert readable("火") == "火"
