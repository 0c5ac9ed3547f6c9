"""The texts of a picture in each format that holds them."""

from __future__ import annotations

import io

import numpy
import pytest
from PIL import Image, PngImagePlugin

from studio.errors import BadConfig, BadFile
from studio.exif import LARGEST, exif_bytes, exif_texts
from studio.pipelines import ImagePipeline, contact_sheet, read_metadata, regenerate, save_picture
from studio.pipelines.drawing import Drawing, texts_of
from studio.pipelines.metadata import open_picture

TEXTS = {"parameters": 'a dög 火🔥, "x"\nNegative prompt: é\nSteps: 1, Seed: 2', "studio": '{"a": "火, \\"b\\""}'}
# what piexif 1.1.3, which A1111 writes with, makes of the text "ä 火🔥": dump({"Exif": {UserComment: ...}})
PIEXIF = bytes.fromhex(
    "4578696600004d4d002a00000008000187690004000000010000001a00000000000192860007000000120000002855"
    "4e49434f44450000e40020706bd83ddd25"
)
KINDS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}


@pytest.fixture(scope="module")
def rocket():
    return ImagePipeline.open("emoji").generate("rocket on a blue background", seeds=7, steps=2)[0]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_picture_keeps_both_texts_in_every_format(rocket, suffix, tmp_path):
    rocket.save(tmp_path / f"own.{suffix}")
    save_picture(rocket, tmp_path / f"ours.{suffix}")
    stream = io.BytesIO()
    rocket.save(stream, KINDS[suffix])
    for file in (tmp_path / f"own.{suffix}", tmp_path / f"ours.{suffix}", stream):
        with Image.open(file) as read:
            assert read.format == KINDS[suffix]
            assert texts_of(read) == {key: rocket.info[key] for key in ("parameters", "studio")}
            assert read_metadata(read)["seed"] == 7
    again = regenerate(tmp_path / f"ours.{suffix}")
    assert again.tobytes() == rocket.tobytes()
    exact = open_picture(tmp_path / f"ours.{suffix}")
    assert (exact.convert("RGB").tobytes() == rocket.tobytes()) == (KINDS[suffix] != "JPEG")
    difference = numpy.asarray(exact, dtype=int) - numpy.asarray(rocket, dtype=int)
    assert abs(difference).mean() < 3


def test_any_text_comes_back(tmp_path):
    drawing = Drawing.of(Image.new("RGB", (8, 8)), TEXTS)
    for suffix in KINDS:
        drawing.save(tmp_path / f"a.{suffix}")
        assert texts_of(open_picture(tmp_path / f"a.{suffix}")) == TEXTS
    for only in TEXTS:
        assert texts_of(reopened(exif_bytes({only: TEXTS[only]}))) == {only: TEXTS[only]}


def reopened(exif: bytes) -> Image.Image:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "WEBP", exif=exif)
    return Image.open(stream)


def test_a1111s_own_writer_is_read_and_matched():
    text = "ä 火🔥"
    assert texts_of(reopened(PIEXIF)) == {"parameters": text}
    ours, value = exif_bytes({"parameters": text}), PIEXIF[-18:]
    assert ours.endswith(value) and ours[:44] == PIEXIF[:44]  # type 7 and its length; the table's end differs


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "a dög".encode("utf-16-le"), "a dög"),
        (b"UNICODE\0" + "\ufeffa dög".encode("utf-16-be"), "a dög"),
        (b"ASCII\0\0\0a dog\0\0", "a dog"),
        (bytes(8) + b"a dog", "a dog"),
        ("a dög".encode(), "a dög"),
    ],
)
def test_comments_of_other_writers_are_read(comment, text):
    written = exif_bytes({"studio": "{}", "parameters": "x" * 100})
    slot = b"UNICODE\0" + "x".encode("utf-16-be") * 100
    assert slot in written
    assert (
        exif_texts(reopened(written.replace(slot, comment.ljust(len(slot), b"\0"))))["parameters"].strip("\0") == text
    )


def test_comfyuis_webp_is_read():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = 'workflow:{"nodes": []}', 'prompt:{"3": {}}'
    assert texts_of(reopened(exif.tobytes())) == {"workflow": '{"nodes": []}', "prompt": '{"3": {}}'}
    exif[0x010F], exif[0x0110] = "Canon", "prompt: none"
    assert texts_of(reopened(exif.tobytes())) == {}


def test_a_cameras_notes_are_not_ours():
    assert "studio" not in texts_of(
        reopened(exif_bytes({"studio": "{}"}).replace(b"adapter-studio", b"Canon camera x"))
    )


def test_hostile_exif_is_a_picture_without_texts():
    whole = exif_bytes(TEXTS)
    for length in range(6, len(whole), 3):
        texts_of(reopened(whole[:length]))
    for place in range(6, 80):
        for value in (0, 255):
            broken = bytearray(whole)
            broken[place] = value
            texts_of(reopened(bytes(broken)))


def test_a_jpeg_that_cannot_hold_the_texts_is_refused_and_the_others_hold_them(tmp_path):
    drawing = Drawing.of(Image.new("RGB", (8, 8)), {"parameters": "x" * 40_000, "studio": "{}"})
    for write in (drawing.save, lambda file: save_picture(drawing, file)):
        with pytest.raises(BadFile, match=rf"JPEG holds at most {LARGEST:,}: save it as PNG or WebP"):
            write(tmp_path / "a.jpg")
        write(tmp_path / "a.webp")
        assert texts_of(open_picture(tmp_path / "a.webp"))["parameters"] == "x" * 40_000
    drawing.info["parameters"] = "x" * ((LARGEST - len(exif_bytes({"parameters": "", "studio": "{}"}))) // 2)
    drawing.save(tmp_path / "most.jpg")
    assert texts_of(open_picture(tmp_path / "most.jpg"))["parameters"] == drawing.info["parameters"]


def test_what_a_caller_says_wins(tmp_path):
    drawing = Drawing.of(Image.new("RGB", (8, 8)), TEXTS)
    drawing.save(tmp_path / "a.jpg", exif=b"")
    drawing.save(tmp_path / "a.png", pnginfo=PngImagePlugin.PngInfo())
    drawing.save(tmp_path / "a.bmp")
    for name in ("a.jpg", "a.png", "a.bmp"):
        with Image.open(tmp_path / name) as read:
            assert texts_of(read) == {}


def test_other_endings_and_modes(tmp_path):
    with pytest.raises(BadConfig, match=r"ends in '\.gif'; pictures are written as \.png"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.gif")
    save_picture(Image.new("RGBA", (4, 4), "red"), tmp_path / "a.jpg")
    assert open_picture(tmp_path / "a.jpg").mode == "RGB"
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_sheet_of_any_format_is_no_data(suffix, tmp_path):
    from studio.datasets.picture import probe_image

    save_picture(contact_sheet([Image.new("RGB", (64, 64))], columns=1), tmp_path / f"sheet.{suffix}")
    with pytest.raises(BadFile, match="a sheet of several pictures"):
        probe_image((tmp_path / f"sheet.{suffix}").read_bytes())
