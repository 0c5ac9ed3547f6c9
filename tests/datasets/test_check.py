"""`check_folder` names what would spoil a training, and stays quiet about a good folder."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from studio.datasets.check import check_folder
from studio.datasets.trigger import rare_word
from studio.errors import BadConfig, BadFile


def text(report, severity=None):
    return [str(problem) for problem in report.problems if severity in (None, problem.severity)]


def test_a_good_folder_has_nothing_to_mend(photos):
    report = check_folder(photos, instance_prompt="a photo of sks dog", resolution=64)
    assert report.ok and report.problems == () and report.images == 5
    assert str(report) == f"{photos}: 5 images, 0 with a caption, 64x64 pixels\n  nothing to mend"


def test_broken_files_are_named_with_what_to_do(photos):
    (photos / "notes.png").write_text("text")
    (photos / "zero.png").write_bytes(b"")
    (photos / "orphan.txt").write_text("x")
    report = check_folder(photos, instance_prompt="a photo of sks dog")
    assert report.ok
    assert text(report, "warning") == [
        "notes.png: not used: is text, not an image, whatever its name says: remove or rename it",
        "orphan.txt: not used: is a caption without an image: no image has that name",
        "zero.png: not used: is empty (0 bytes)",
    ]


def test_no_usable_image_is_an_error_that_lists_what_is_there(tmp_path):
    (tmp_path / "a.png").write_text("text")
    report = check_folder(tmp_path)
    assert not report.ok
    assert text(report, "error") == ["there is no usable image: put PNG, JPEG or WebP files into the folder"]
    assert any(line.startswith("a.png: not used") for line in text(report, "warning"))
    with pytest.raises(BadFile, match="there is no image folder"):
        check_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("prompt", "severity", "words"),
    [
        ("a photo of", "error", "names no subject"),
        (
            "a photo of dog",
            "warning",
            "has no trigger: every dog will change; put a rare word before it, such as 'sks dog'",
        ),
    ],
)
def test_a_prompt_without_a_trigger_is_told(photos, prompt, severity, words):
    report = check_folder(photos, instance_prompt=prompt)
    assert any(words in line for line in text(report, severity))
    assert report.ok == (severity != "error")


def test_captions_without_the_trigger_are_named(photos):
    for number, caption in enumerate(
        ["a photo of sks dog", "a dog in the garden", "SKS dog", "sksdog", "sks dog, wet"]
    ):
        (photos / f"photo{number}.txt").write_text(caption)
    report = check_folder(photos, instance_prompt="a photo of sks dog")
    assert text(report, "warning") == []
    (line,) = text(report, "note")
    assert line == "captions that do not say 'sks dog' get the instance prompt in front: photo1.png, photo3.png"
    sent = ("a photo of sks dog", "a photo of sks dog, a dog in the garden", "SKS dog")
    assert report.captions == 5 and report.sent == sent
    assert 'reads "a photo of sks dog, a dog in the garden"' in str(report)


def test_what_is_read_is_what_a_training_reads(photos):
    (photos / "photo0.txt").write_text("a dog")
    (photos / "photo1.txt").write_text("Ink style, a dog")
    style = check_folder(photos, trigger="ink style")
    assert style.sent == ("ink style, a dog", "Ink style, a dog")
    (line,) = text(style, "warning")
    assert line.startswith("have no caption: they are trained with the trigger alone") and "photo2.png" in line
    folder = photos / "10_sks dog"
    folder.mkdir()
    shutil.move(photos / "photo2.png", folder / "photo2.png")
    assert "sks dog" in check_folder(photos).sent and check_folder(photos).captions == 3
    subject = check_folder(photos, instance_prompt="a photo of sks dog")
    assert subject.captions == 2 and subject.sent[0] == "a photo of sks dog, a dog"
    assert "10_sks dog/photo2.png: the words of a folder's name are not used beside an instance prompt" in text(subject)
    with pytest.raises(BadConfig, match="give one of the two"):
        check_folder(photos, instance_prompt="a photo of sks dog", trigger="ink style")


def test_caption_troubles(photos):
    (photos / "photo0.txt").write_text("word " * 80)
    (photos / "photo1.txt").write_text("one\ntwo")
    lines = text(check_folder(photos))
    assert any(line.startswith("photo0.png: captions longer than most text encoders read") for line in lines)
    assert "photo1.png: captions of several lines are joined to one" in lines
    assert any("have no caption while others have one" in line and "photo2.png" in line for line in lines)
    for number in range(5):
        (photos / f"photo{number}.txt").write_text("the same")
    assert any("every caption is the same ('the same')" in line for line in text(check_folder(photos)))


def test_sizes_are_judged_against_the_resolution(photos, picture):
    picture(20, (400, 64)).save(photos / "long.png")
    picture(21, (160, 64)).save(photos / "wide.png")
    lines = text(check_folder(photos, instance_prompt="a photo of sks dog", resolution=(128, 128)))
    assert any(line.startswith("smaller than 128x128, so they are enlarged and blurred") for line in lines)
    assert "long.png: more than four times as long as wide: most of it is cut off" in lines
    assert any("wide.png: up to 60% of the picture is cut off at 128x128" in line for line in lines)
    assert any("mixed shapes (5 square, 2 wide)" in line for line in lines)
    with pytest.raises(BadConfig, match="not 0x0"):
        check_folder(photos, resolution=0)


def test_equal_pictures_are_found_as_files_and_as_pictures(photos, tmp_path):
    shutil.copy(photos / "photo1.png", photos / "copy.png")
    with Image.open(photos / "photo2.png") as image:
        image.resize((128, 128)).save(photos / "again.jpg", quality=90)
    lines = text(check_folder(photos, instance_prompt="a photo of sks dog"), "warning")
    assert "the same file several times, so it counts more than others: copy.png, photo1.png" in lines
    assert "the same picture in two files: again.jpg, photo2.png" in lines
    assert len(lines) == 2


def test_odd_content_is_noted(photos, picture):
    Image.new("RGB", (64, 64), (9, 9, 9)).save(photos / "blank.png")
    picture(30, (64, 64)).convert("CMYK").save(photos / "print.jpg")
    frames = [picture(number, (64, 64)) for number in (31, 32)]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(33, (64, 64)).save(photos / "turned.jpg", exif=exif)
    lines = text(check_folder(photos, instance_prompt="a photo of sks dog"))
    assert "blank.png: one colour all over: nothing to learn" in lines
    assert "moving.gif: animated or with several pages: the first frame is used" in lines
    assert any("converted to RGB (1 CMYK)" in line for line in lines)
    assert "1 image turned as the camera recorded it (EXIF)" in lines


def test_few_pictures_are_a_warning(tmp_path, picture):
    picture(0).save(tmp_path / "one.png")
    assert any(line.startswith("only 1 image: with 3 or more") for line in text(check_folder(tmp_path), "warning"))


def test_the_report_is_plain_data_too(photos):
    (photos / "zero.png").write_bytes(b"")
    values = json.loads(json.dumps(check_folder(photos).as_dict()))
    assert values["images"] == 5 and values["ok"] is True
    assert {"severity": "warning", "message": "not used: is empty (0 bytes)", "files": ["zero.png"]} in values[
        "problems"
    ]


@pytest.mark.parametrize(
    ("prompt", "trigger"),
    [
        ("a photo of sks dog", "sks"),
        ("Photo of the zwx teddy bear.", "zwx"),
        ("dog", None),
        ("a photo", None),
        ("", None),
    ],
)
def test_the_trigger_is_the_word_before_the_class(prompt, trigger):
    assert rare_word(prompt) == trigger
