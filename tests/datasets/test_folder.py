"""A folder of pictures: any layout is read, every skipped file is named, the order and the digest are stable."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
from pathlib import Path

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
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
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
    assert len(said) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"file_name": "photo1.png"}, "has no caption: one of text, caption, prompt is needed"),
        ({"file_name": "photo1.png", "text": " "}, "has an empty caption: write one, or remove the line"),
        ({"file_name": "photo1.png", "text": 7}, "has no caption: one of"),
        ({"text": "a dog"}, 'has no "file_name" that is a text'),
        ({"file_name": "photo1.png", "text": "\ud800"}, "is not valid JSON: the text '\\\\ud800' holds half a surr"),
        ("{not json", "is not valid JSON"),
        ("[1]", 'has no "file_name"'),
        ("[" * 100_000, "is not valid JSON: more than 100 levels"),
    ],
)
def test_a_wrong_line_of_metadata_stops_with_its_number(photos, line, reason):
    good = json.dumps({"file_name": "photo0.png", "text": "a dog"})
    (photos / "metadata.jsonl").write_text(f"{good}\n\n{line if isinstance(line, str) else json.dumps(line)}\n")
    (entry,) = scan_folder(photos).refused
    assert entry.file.name == "metadata.jsonl:3" and re.match(reason, entry.reason), entry
    with pytest.raises(BadFile, match=r"photos cannot be trained on as it is: metadata\.jsonl:3 "):
        read_folder(photos)
    assert read_folder(photos, captions=False).items


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
    assert [item.caption for item in read_folder(photos)] == ["grün", "grün", None, None, None]
    (photos / "photo2.txt").write_bytes("grün’s".encode("windows-1252"))
    (photos / "photo3.txt").write_bytes(b"a\0b")
    (photos / "photo4.txt").write_bytes(b" \n")
    found = scan_folder(photos)
    assert {entry.file.name: entry.reason for entry in found.refused} == {
        "photo2.txt": "is not UTF-8 text (invalid start byte at byte 2): save it as UTF-8, or say "
        "--caption-encoding windows-1252 if it is that",
        "photo3.txt": "is not a text file: it holds zero bytes",
        "photo4.txt": "is an empty caption: write one, or remove the file",
    }
    with pytest.raises(BadFile, match=r"photo2\.txt is not UTF-8.*photo3\.txt is not a text.*photo4\.txt is an empty"):
        read_folder(photos)
    for number in (3, 4):
        (photos / f"photo{number}.txt").unlink()
    asked = read_folder(photos, encoding="windows-1252")
    assert [item.caption for item in asked] == ["grün", "grün", "grün’s", None, None]  # marks win over what is asked


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_separators_inside_a_text(photos, end):
    rows = [json.dumps({"file_name": f"photo{n}.png", "text": f"a\u2028dog {n}"}, ensure_ascii=False) for n in range(5)]
    (photos / "metadata.jsonl").write_bytes(end.join(rows).encode())
    assert [item.caption for item in read_folder(photos)] == [f"a dog {number}" for number in range(5)]


@pytest.mark.parametrize(("of_picture", "of_caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_equal_however_their_accents_are_composed(photos, of_picture, of_caption):
    first, second = (unicodedata.normalize(of_picture, f"café {number}.png") for number in (1, 2))
    (photos / "photo0.png").rename(photos / first)
    (photos / "photo1.png").rename(photos / second)
    (photos / unicodedata.normalize(of_caption, "café 1.txt")).write_text("a cup")
    row = {"file_name": unicodedata.normalize(of_caption, "café 2.png"), "text": "two cups"}
    (photos / "metadata.jsonl").write_text(json.dumps(row))
    found = read_folder(photos)
    assert [item.caption for item in found][:2] == ["a cup", "two cups"] and not found.skipped


def test_a_date_is_no_number_of_repeats(tmp_path, picture):
    for name in ("20240512_beach", "10001_over", "10000_most"):
        (tmp_path / "set" / name).mkdir(parents=True)
        picture(len(name)).save(tmp_path / "set" / name / "a.png")
    found = scan_folder(tmp_path / "set")
    assert [entry.file.name for entry in found.refused] == ["10001_over", "20240512_beach"]
    assert all("a folder named by a date" in entry.reason for entry in found.refused)
    with pytest.raises(BadFile, match="20240512_beach asks for 20,240,512 repeats .* at most 10,000"):
        read_folder(tmp_path / "set", captions=False)
    (tmp_path / f"{'9' * 200}_x").mkdir()
    picture(1).save(tmp_path / f"{'9' * 200}_x" / "a.png")
    with pytest.raises(BadFile, match=r"more than 10\^18 repeats"):
        read_folder(tmp_path / f"{'9' * 200}_x")


def test_a_run_in_the_folder_is_no_data(photos, picture):
    before = read_folder(photos)
    (photos / "run" / "previews").mkdir(parents=True)
    picture(11).save(photos / "run" / "previews" / "step-1.png")
    (photos / "run" / "run.toml").write_text("")
    after = read_folder(photos)
    assert after.digest == before.digest and names(after) == names(before)
    assert reasons(after) == {"run": "is the folder of a run: its previews are no data"}
    with pytest.raises(BadFile, match="is the folder of a run"):
        read_folder(photos / "run")


def test_pictures_that_the_studio_drew_are_data_where_they_are_all_there_is(photos, picture, tmp_path):
    from studio.pipelines import save_png

    drawn = picture(12)
    drawn.info["studio"] = json.dumps({"tool": "adapter-studio", "format": 1})
    save_png(drawn, photos / "gen" / "0000.png")
    found = read_folder(photos)
    assert len(found) == 5 and reasons(found)["0000.png"].startswith("was drawn by the studio")
    assert len(read_folder(photos, generated=True)) == 6
    assert len(read_folder(photos / "gen")) == 1


def test_what_is_no_regular_file_is_named_and_not_read(photos):
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "photo0.txt")
    (photos / "endless.jpg").symlink_to("/dev/zero")
    (photos / "nothing.webp").symlink_to(photos / "gone")
    (photos / "round.png").symlink_to(photos / "round.png")
    (photos / "system").symlink_to("/proc")
    found = scan_folder(photos)
    assert len(found) == 5
    said = reasons(found)
    assert said.pop("system") == "leads into the system's own files, which are no data"
    assert said.pop("pipe.png") == "is a pipe (FIFO), not a file: only regular files are read"
    assert said.pop("endless.jpg") == "is a device, not a file: only regular files are read"
    assert said.pop("nothing.webp").startswith("cannot be read: No such file")
    assert said.pop("round.png").startswith("cannot be read: Too many levels")
    assert not said and [entry.reason for entry in found.refused] == [
        "is a pipe (FIFO), not a file: only regular files are read"
    ]


def test_names_that_are_not_utf8_are_shown_and_used(photos):
    (photos / "photo0.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    assert len(read_folder(photos)) == 5 and read_folder(photos).digest
    (photos / os.fsdecode(b"10_caf\xe9")).mkdir()
    shutil.copy(photos / "photo1.png", photos / os.fsdecode(b"10_caf\xe9") / "x.png")
    with pytest.raises(BadFile, match=r"10_caf\\xe9 has a name that is not UTF-8"):
        read_folder(photos)


def test_limits_of_a_folder(photos, monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "picture-bytes=20 folder-files=5")
    found = scan_folder(photos)
    assert not len(found) and all("bytes of a picture's file; at most 20" in entry.reason for entry in found.skipped)
    (photos / "more").mkdir()
    with pytest.raises(BadFile, match=r"at least 6 files below a folder; at most 5"):
        scan_folder(photos)


def test_a_folder_deeper_than_python_calls_itself(tmp_path, picture):
    place = str(tmp_path)
    for _ in range(1_500):
        place += "/d"
        Path(place).mkdir()
    try:
        picture(0).save(f"{place}/a.png")
        assert len(read_folder(tmp_path)) == 1
    finally:  # Python's own ways to remove a tree, which pytest takes, call themselves
        Path(place, "a.png").unlink()
        while place != str(tmp_path):
            Path(place).rmdir()
            place = place[:-2]


@pytest.mark.slow
def test_many_pictures_and_captions_take_linear_time(tmp_path, picture):
    for number in range(4_000):
        folder = tmp_path / str(number % 200)
        folder.mkdir(exist_ok=True)
        picture(number, (16, 16)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    begin = time.process_time()
    assert len(read_folder(tmp_path)) == 4_000
    assert time.process_time() - begin < 12


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
        "photo.heic": "is a HEIC file: pip install pillow-heif",
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
