"""A folder of pictures: any layout is read, every skipped file is named, the order and the digest are stable."""

from __future__ import annotations

import json
import shutil

import pytest

from studio.datasets.folder import read_folder, scan_folder
from studio.errors import BadFile


def names(found):
    return [item.file.relative_to(found.folder).as_posix() for item in found]


def reasons(found):
    return {entry.file.name: entry.reason for entry in found.skipped}


def test_a_flat_folder(photos):
    found = read_folder(photos)
    assert names(found) == [f"photo{number}.png" for number in range(5)] and not found.skipped
    assert {(item.width, item.height, item.repeats, item.caption) for item in found} == {(64, 64, 1, None)}
    assert len({item.digest for item in found}) == 5


def test_nested_and_repeats_folders(tmp_path, picture):
    for number, place in enumerate(
        ["a.png", "more/b.jpg", "10_sks dog/c.webp", "10_sks dog/deeper/d.bmp", "3_cat/e.PNG", "0_off/f.png"]
    ):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    found = read_folder(tmp_path)
    assert {
        name: (item.repeats, item.caption, item.caption_from) for name, item in zip(names(found), found, strict=True)
    } == {
        "a.png": (1, None, None),
        "more/b.jpg": (1, None, None),
        "10_sks dog/c.webp": (10, "sks dog", "folder"),
        "10_sks dog/deeper/d.bmp": (10, "sks dog", "folder"),
        "3_cat/e.PNG": (3, "cat", "folder"),
    }
    assert reasons(found) == {"f.png": "is in a folder whose name says 0 repeats"}
    # the folder itself may be named like that
    assert {item.caption for item in read_folder(tmp_path / "10_sks dog")} == {"sks dog"}


def test_captions_from_every_source_and_in_their_order(photos):
    (photos / "photo0.txt").write_text("  a photo of\n sks dog ", encoding="utf-8")
    (photos / "photo1.caption").write_text("from caption")
    (photos / "photo2.png.txt").write_text("by full name")
    rows = [
        {"file_name": "photo3.png", "text": "from metadata"},
        {"file_name": "photo0.png", "text": "loses"},
        {"file_name": "gone.png", "text": "orphan"},
        {"file_name": "photo4.png"},
        {"file_name": "photo4.png", "text": " "},
    ]
    lines = [json.dumps(row) for row in rows] + ["{not json", "[1]"]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    found = read_folder(photos)
    assert [item.caption for item in found] == [
        "a photo of sks dog",
        "from caption",
        "by full name",
        "from metadata",
        None,
    ]
    assert [item.caption_from for item in found] == ["file", "file", "file", "metadata", None]
    assert found.several_lines == (photos / "photo0.png",)
    said = reasons(found)
    assert said["metadata.jsonl:2"] == "is a second caption of photo0.png: photo0.txt is used"
    assert said["metadata.jsonl:3"] == "is a caption without an image: there is no 'gone.png'"
    assert said["metadata.jsonl:4"] == "has no caption: one of text, caption, prompt is needed"
    assert said["metadata.jsonl:5"].startswith("has an empty caption")
    assert said["metadata.jsonl:6"].startswith("is not valid JSON")
    assert said["metadata.jsonl:7"] == 'has no "file_name" that is a text'
    assert len(said) == 6


def test_metadata_reaches_into_folders_and_the_nearer_one_wins(tmp_path, picture):
    (tmp_path / "in").mkdir()
    picture(0).save(tmp_path / "in" / "a.png")
    picture(1).save(tmp_path / "in" / "b.png")
    rows = [{"file_name": "in/a.png", "text": "far a"}, {"file_name": "in/b.png", "caption": "far b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": "near a"}))
    found = read_folder(tmp_path)
    assert [item.caption for item in found] == ["near a", "far b"]
    assert reasons(found) == {"metadata.jsonl:1": "is a second caption of a.png: metadata.jsonl:1 is used"}


def test_two_captions_of_one_picture_are_told(photos):
    (photos / "photo0.txt").write_text("one")
    (photos / "photo0.caption").write_text("two")
    (photos / "photo1.txt").write_text("one")
    (photos / "photo1.caption").write_text("one\n")
    said = reasons(read_folder(photos))
    assert said["photo0.caption"] == "is a second caption of photo0.png: photo0.txt is used, this says something else"
    assert said["photo1.caption"].endswith("this says the same")


def test_encodings_are_read_or_refused_but_never_guessed(photos):
    (photos / "photo0.txt").write_bytes("\ufeffgrün".encode())
    (photos / "photo1.txt").write_text("grün", encoding="utf-16")
    (photos / "photo2.txt").write_bytes("grün".encode("latin-1"))
    (photos / "photo3.txt").write_bytes(b"a\0b")
    (photos / "photo4.txt").write_bytes(b" \n")
    found = read_folder(photos)
    assert [item.caption for item in found] == ["grün", "grün", None, None, None]
    assert reasons(found) == {
        "photo2.txt": "is not UTF-8 text (invalid start byte at byte 2): save it as UTF-8",
        "photo3.txt": "is not a text file: it holds zero bytes",
        "photo4.txt": "is an empty caption: write one, or remove the file",
    }


def test_every_file_that_is_skipped_is_named(photos, picture):
    (photos / "notes.png").write_text("not a picture")
    whole = (photos / "photo0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "zero.jpg").write_bytes(b"")
    picture(9, (8, 8)).save(photos / "tiny.png")
    (photos / "orphan.txt").write_text("nobody's")
    (photos / "dog.json").write_text("{}")
    (photos / "manual.pdf").write_bytes(b"%PDF")
    (photos / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "README").write_text("words")
    said = reasons(read_folder(photos))
    expected = {
        "notes.png": "is text, not an image",
        "cut.png": "is truncated",
        "zero.jpg": "is empty (0 bytes)",
        "tiny.png": "is too small: 8x8 pixels",
        "orphan.txt": "is a caption without an image",
        "dog.json": "is not read: captions come from",
        "manual.pdf": "is neither an image nor a caption",
        "photo.heic": "is a HEIC file",
        ".DS_Store": "is a hidden or system file",
        "README": "is text, not an image",
    }
    assert set(said) == set(expected)
    for name, start in expected.items():
        assert said[name].startswith(start), (name, said[name])


def test_a_caption_of_a_broken_picture_is_no_orphan(photos):
    (photos / "broken.png").write_bytes(b"")
    (photos / "broken.txt").write_text("a dog")
    assert set(reasons(read_folder(photos))) == {"broken.png"}


def test_without_captions_their_files_are_left_alone(photos):
    (photos / "photo0.txt").write_text("x")
    (photos / "orphan.txt").write_bytes(b"\xff")
    found = read_folder(photos, captions=False)
    assert {item.caption for item in found} == {None} and not found.skipped


def test_unknown_suffixes_and_none_are_opened_by_content(photos, picture):
    picture(7).save(photos / "wrong.png", "JPEG")
    picture(8).save(photos / "bare", "PNG")
    assert {"wrong.png", "bare"} <= set(names(read_folder(photos)))


def test_duplicates_are_reported(photos):
    shutil.copy(photos / "photo1.png", photos / "copy.png")
    found = read_folder(photos)
    assert [[item.file.name for item in group] for group in found.duplicates] == [["copy.png", "photo1.png"]]
    assert len(found) == 6


def test_links_are_followed_once(photos, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(photos)
    (photos / "round").symlink_to(photos)
    assert len(read_folder(tmp_path / "set")) == 5


def test_the_digest_depends_on_content_captions_and_repeats_only(photos, tmp_path):
    first = read_folder(photos).digest
    shutil.copytree(photos, tmp_path / "elsewhere")
    assert read_folder(tmp_path / "elsewhere").digest == first
    (photos / "photo0.txt").write_text("a dog")
    captioned = read_folder(photos).digest
    assert captioned != first
    (photos / "photo0.txt").write_text("a dog\n")
    assert read_folder(photos).digest == captioned
    shutil.move(tmp_path / "elsewhere", tmp_path / "10_x")
    assert read_folder(tmp_path / "10_x", captions=False).digest != first


@pytest.mark.parametrize("captions", [True, False])
def test_missing_empty_and_useless_folders_are_one_sentence(tmp_path, captions):
    def message(folder):
        with pytest.raises(BadFile) as error:
            read_folder(folder, captions=captions)
        return str(error.value)

    assert message(tmp_path / "none") == f"there is no image folder {tmp_path / 'none'}: check the path"
    assert message(tmp_path) == f"the image folder {tmp_path} is empty: put pictures (PNG, JPEG, WebP, ...) into it"
    (tmp_path / "a.png").write_text("text")
    assert "is a file, and a folder of images is needed" in message(tmp_path / "a.png")
    assert message(tmp_path).startswith(
        f"the image folder {tmp_path} holds no usable image: a.png is text, not an image"
    )
    for number in range(9):
        (tmp_path / f"b{number}.png").write_bytes(b"")
    assert message(tmp_path).endswith("; and 4 more")
    assert len(scan_folder(tmp_path, captions=captions).skipped) == 10
