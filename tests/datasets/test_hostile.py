"""Data that could be taken for something else: each is read as it was meant, or named."""

from __future__ import annotations

import codecs
import json

import pytest
from PIL import Image

from studio.datasets.chat import read_samples
from studio.datasets.folder import read_folder, scan_folder
from studio.errors import BadFile
from studio.pipelines import before_after, contact_sheet, read_metadata, save_png


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u200d", "\u00ad \u2060", "\x07"])
def test_a_caption_of_which_nothing_can_be_seen_is_empty(photos, text):
    (photos / "photo0.txt").write_text(text, encoding="utf-8")
    with pytest.raises(BadFile, match=r"photo0\.txt is an empty caption"):
        read_folder(photos)


@pytest.mark.parametrize("text", ["\ue000", "\U0001f415", "\u200bdog"])  # icons of a typeface are seen
def test_one_of_which_something_can_be_seen_is_not(photos, text):
    (photos / "photo0.txt").write_text(text, encoding="utf-8")
    assert read_folder(photos).items[0].caption == text


@pytest.mark.parametrize(
    "line",
    [
        '{"file_name": "photo0.png", "text": "x", "text": "y"}',
        '{"file_name": "photo0.png", "file_name": "photo1.png", "text": "x"}',
        '{"file_name": "photo0.png", "text": "x", "more": {"a": 1, "a": 2}}',
    ],
)
def test_a_name_that_stands_twice_in_a_line_is_refused(photos, line):
    (photos / "metadata.jsonl").write_text(line)
    with pytest.raises(
        BadFile, match=r"metadata\.jsonl:1 is not valid JSON: .* stands there twice; which one is meant"
    ):
        read_folder(photos)


@pytest.mark.parametrize("line", ['{"text": "x", "text": "y"}', '{"prompt": "a", "completion": "b", "prompt": "c"}'])
def test_a_name_that_stands_twice_in_a_sample_is_refused(tmp_path, line):
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(BadFile, match=r"line 1: .*stands there twice"):
        read_samples(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    "line", [{"text": "\u200b"}, {"prompt": "a", "completion": "\u2060"}, {"instruction": "\ufeff", "output": "x"}]
)
def test_a_sample_of_which_nothing_can_be_seen_is_empty(tmp_path, line):
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    with pytest.raises(BadFile, match="is empty"):
        read_samples(tmp_path / "data.jsonl")


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE])
def test_a_mark_alone_is_no_caption(photos, mark):
    (photos / "photo0.txt").write_bytes(mark)
    with pytest.raises(BadFile, match=r"photo0\.txt"):
        read_folder(photos)


@pytest.mark.parametrize("name", [".git", ".thumbnails", "__MACOSX"])
def test_hidden_folders_are_named(photos, picture, name):
    (photos / name).mkdir()
    picture(9).save(photos / name / "a.png")
    found = read_folder(photos)
    assert len(found) == 5
    assert [(entry.file.name, entry.reason) for entry in found.skipped] == [
        (name, "is a hidden folder, which is not looked into")
    ]


def test_a_picture_of_several_views_is_read(photos, picture):
    picture(9).save(photos / "view.mpo")
    assert "view.mpo" in {item.file.name for item in read_folder(photos)}


def sheets(picture):
    tiles = [picture(number) for number in range(4)]
    yield contact_sheet(tiles, columns=2)
    yield contact_sheet(tiles[:1], columns=1, enlarge=False)
    yield before_after(tiles[:2], tiles[2:], ["a", "b"])


def test_sheets_are_never_data(photos, picture):
    for number, sheet in enumerate(sheets(picture)):
        save_png(sheet, photos / f"a{number}.png")
        sheet.save(photos / f"b{number}.png")  # by Pillow's own method
    found = scan_folder(photos)
    assert [item.file.name for item in found] == [f"photo{number}.png" for number in range(5)]
    assert {entry.reason for entry in found.skipped} == {
        "is a sheet of several pictures that the studio put together: it is no data"
    }
    assert len(found.skipped) == 6


def test_a_sheet_among_pictures_that_the_studio_drew_is_none_of_them(tmp_path, picture):
    drawn = picture(0)
    drawn.info["studio"] = '{"adapters": [], "tool": "adapter-studio"}'
    save_png(drawn, tmp_path / "0000.png")
    save_png(contact_sheet([drawn], columns=1), tmp_path / "sheet.png")
    assert [item.file.name for item in read_folder(tmp_path)] == ["0000.png"]
    (tmp_path / "0000.png").unlink()
    with pytest.raises(BadFile, match=r"holds no usable image: sheet\.png is a sheet"):
        read_folder(tmp_path)


def test_a_sheet_is_not_made_again(tmp_path):
    file = save_png(contact_sheet([Image.new("RGB", (64, 64))], columns=1), tmp_path / "sheet.png")
    with pytest.raises(BadFile, match="is a sheet of several pictures"):
        read_metadata(file)
