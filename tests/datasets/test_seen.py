"""Pictures with captions: the forms of a record, where paths begin, and what is refused, each by its place."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from studio.datasets.samples import read_samples
from studio.datasets.seen import seen_of
from studio.errors import BadFile

ASKED = [{"role": "user", "content": "What colour?"}]


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "pictures" / "a.png"
    file.parent.mkdir()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(file)
    return file


def lines(folder, *entries):
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.mark.parametrize(
    ("entry", "turns", "text"),
    [
        ({"text": "a red square"}, (), "a red square"),
        ({"caption": " red\n"}, (), "red"),
        ({"question": "What colour?", "answer": "red"}, (("user", "What colour?"),), "red"),
        ({"prompt": "What colour?", "completion": "red"}, (("user", "What colour?"),), "red"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "red"}]}, (("user", "What colour?"),), "red"),
    ],
)
def test_the_forms(tmp_path, picture, entry, turns, text):
    found = read_samples(lines(tmp_path, {"image": "pictures/a.png", **entry, "id": 3}), seen_of)
    (sample,) = found.items
    assert (sample.name, sample.turns, sample.text, found.unused) == (str(picture), turns, text, {"id": 1})
    assert sample.picture().getpixel((0, 0)) == (200, 0, 0)


def test_a_picture_is_the_same_however_it_comes(picture):
    picture.with_suffix(".txt").write_text("red\n")
    (beside,) = read_samples(picture.parent, seen_of).items
    with Image.open(picture) as opened:
        entries = [{"image": {"bytes": picture.read_bytes(), "path": None}, "text": "red"},
                   {"image": opened.copy(), "text": "red"}]  # fmt: skip
    made = read_samples(entries, seen_of).items
    assert {one.digest for one in made} == {beside.digest} and made[0].name == "of data, entry 1"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"imgae": "a.png", "text": "b"}, "a sample has image and text; image, question and answer; or image and "
         "messages; found: 'imgae', 'text'; did you mean 'image' by 'imgae'?"),
        ({"image": "pictures/a.png", "answer": "b"}, "a sample has image and text; image, question and answer; or "
         "image and messages; found: 'image', 'answer'"),
        ({"image": "pictures/a.png", "text": "b", "caption": "c"}, "it has 'text' and 'caption'; which one is meant?"),
        ({"image": "pictures/a.png", "text": " "}, "the sample has no answer: text is empty"),
        ({"image": 5, "text": "b"}, "image must be the path of a picture, not 5"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused(tmp_path, picture, entry, message):
    file = lines(tmp_path, entry)
    with pytest.raises(BadFile) as caught:
        read_samples(file, seen_of)
    assert str(caught.value) == f"{file}, line 1: {message}"


def test_damaged_pictures_are_named(tmp_path, picture):
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(BadFile, match=rf"the image {picture} "):
        read_samples(lines(tmp_path, {"image": "pictures/a.png", "text": "b"}), seen_of)
    with pytest.raises(BadFile, match="data, entry 1: the picture cannot be read"):
        read_samples([{"image": {"bytes": b"\x89PNG"}, "text": "b"}], seen_of)
