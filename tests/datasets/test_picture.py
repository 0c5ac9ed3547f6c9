"""One picture: whatever way it is stored, it opens as the RGB picture that a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib

import numpy
import pytest
import torch
from PIL import Image, ImageCms

from studio.datasets.picture import MIN_SIDE, fit_image, open_image, probe_image, to_pixels
from studio.errors import BadConfig, BadFile

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flag(size=(40, 20)) -> Image.Image:
    """Left half red, right half blue, with a green top left corner."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    image.paste(GREEN, (0, 0, size[0] // 4, size[1] // 2))
    return image


def data_of(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def near(pixel, colour, tolerance=6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def test_exif_rotation_is_applied_in_all_eight_ways(tmp_path):
    turned = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, operation in turned.items():
        stored = flag() if operation is None else flag().transpose(operation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.jpg"
        stored.save(file, quality=95, subsampling=0, exif=exif)
        shown = open_image(file)
        assert shown.size == (40, 20), orientation
        assert near(shown.getpixel((3, 3)), GREEN, 40) and near(shown.getpixel((36, 10)), BLUE, 40), orientation
        probe = probe_image(file.read_bytes())
        assert (probe.width, probe.height) == (40, 20) and probe.rotated == (orientation > 4)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "PA", "P", "RGB tRNS"])
def test_transparency_is_laid_over_the_background(tmp_path, kind):
    file = tmp_path / "x.png"
    if kind == "RGB tRNS":
        image = flag()
        image.save(file, transparency=BLUE)
    elif kind == "P":
        image = flag().quantize(3)
        image.save(file, transparency=image.getpixel((36, 10)))
    elif kind == "PA":
        image = flag().convert("RGBA")
        image.putalpha(Image.new("L", image.size, 0))
        file = tmp_path / "x.tif"
        image.convert("PA").convert("RGBA").save(file)
    else:
        image = flag().convert(kind)
        alpha = Image.new("L", image.size, 255)
        alpha.paste(0, (20, 0, 40, 20))
        image.putalpha(alpha)
        image.save(file)
    assert near(open_image(file, background=(10, 200, 30)).getpixel((36, 10)), (10, 200, 30))
    assert open_image(file).getpixel((36, 10)) == (255, 255, 255)
    assert open_image(file).mode == "RGB"


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(tmp_path / "x.png")
    assert near(open_image(tmp_path / "x.png", background=BLUE).getpixel((5, 5)), (128, 0, 127), 1)


def test_palettes_and_grey_and_one_bit(tmp_path):
    flag().quantize(3).save(tmp_path / "p.png")
    assert near(open_image(tmp_path / "p.png").getpixel((36, 10)), BLUE)
    flag().quantize(3).save(tmp_path / "p.gif")
    assert near(open_image(tmp_path / "p.gif").getpixel((3, 3)), GREEN)
    flag().convert("L").save(tmp_path / "l.png")
    assert open_image(tmp_path / "l.png").getpixel((36, 10)) == (29, 29, 29)
    Image.new("1", (20, 20), 1).save(tmp_path / "1.png")
    assert open_image(tmp_path / "1.png").getpixel((5, 5)) == (255, 255, 255)


def test_cmyk_is_converted(tmp_path):
    flag().convert("CMYK").save(tmp_path / "x.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "x.jpg") as stored:
        assert stored.mode == "CMYK"
    shown = open_image(tmp_path / "x.jpg")
    assert near(shown.getpixel((36, 10)), BLUE, 20) and near(shown.getpixel((3, 3)), GREEN, 20)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_keep_their_shades(tmp_path, kind):
    values = numpy.linspace(0, 65535, 32 * 32, dtype=numpy.uint16).reshape(32, 32)
    file = tmp_path / f"x.{kind}"
    Image.fromarray(values).save(file)
    shown = numpy.asarray(open_image(file))[:, :, 0]
    assert numpy.array_equal(shown, (values / 257).round().astype(numpy.uint8))  # not clipped to white


def test_float_pictures_keep_their_shades(tmp_path):
    values = numpy.linspace(0, 1, 32 * 32, dtype=numpy.float32).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    shown = numpy.asarray(open_image(tmp_path / "x.tif"))[:, :, 0]
    assert numpy.array_equal(shown, (values * 255).round().astype(numpy.uint8))


def test_sixteen_bit_colour_png_opens(tmp_path):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 16
    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert near(open_image(tmp_path / "x.png").getpixel((3, 3)), (255, 128, 0), 1)


def test_a_colour_profile_is_converted_and_a_broken_one_ignored(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    image.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    image.save(tmp_path / "other.png", icc_profile=linear.tobytes())
    for name in ("srgb", "broken", "other"):  # a profile of another colour space than the picture's is no use either
        assert open_image(tmp_path / f"{name}.png").getpixel((5, 5)) == (200, 30, 30)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert near(open_image(tmp_path / "x.gif").getpixel((5, 5)), RED)
    assert probe_image((tmp_path / "x.gif").read_bytes()).several


BROKEN = {
    "empty": (b"", "is empty (0 bytes)"),
    "text": (b"just some notes\n" * 200, "is text, not an image, whatever its name says"),
    "page": (b"<!DOCTYPE html><html>404</html>", "is a web page or SVG, not a pixel image"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "heic": (b"\0\0\0\x18ftypheic" + b"\0" * 99, "is a HEIC file: pip install"),
    "noise": (bytes(range(256)) * 9, "is not an image in a format that can be read"),
    "cut png": (data_of(flag((200, 200)), "PNG")[:200], "is truncated"),
    "cut jpeg": (data_of(flag((300, 300)).effect_spread(9), "JPEG")[:2500], "is truncated"),
    "bad checksum": (data_of(flag(), "PNG").replace(b"IDAT", b"IDAT\xff", 1), "is damaged"),
    "tiny": (data_of(Image.new("RGB", (MIN_SIDE - 1, 99)), "PNG"), f"is too small: {MIN_SIDE - 1}x99 pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unusable_files_are_named_for_what_they_are(name, tmp_path):
    data, sentence = BROKEN[name]
    with pytest.raises(BadFile) as error:
        probe_image(data)
    assert sentence in str(error.value)
    if name != "tiny":
        file = tmp_path / "picture.png"
        file.write_bytes(data)
        with pytest.raises(BadFile, match=r"^the image .*picture\.png is "):
            open_image(file)


def test_mutated_files_never_raise_anything_else():
    """A thousand damaged files: each opens, or is refused by our own error."""
    draw = numpy.random.default_rng(0)
    picture = flag((48, 32)).effect_spread(5)
    originals = [data_of(picture, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]
    refused = 0
    for number in range(1000):
        data = bytearray(originals[number % len(originals)])
        for _ in range(int(draw.integers(1, 6))):
            data[int(draw.integers(len(data)))] = int(draw.integers(256))
        if number % 7 == 0:
            data = data[: int(draw.integers(len(data)))]
        try:
            probe_image(bytes(data))
        except BadFile as error:
            refused += 1
            assert str(error).startswith("is ") or str(error).startswith("has ")
    assert 200 < refused < 1000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"cannot read the image .*none\.png: No such file"):
        open_image(tmp_path / "none.png")


def test_fitting_covers_and_cuts_the_middle():
    image = flag((80, 40))
    fitted = fit_image(image, 20, 20)
    assert fitted.size == (20, 20)
    # the middle 40 x 40 pixels: half red, half blue
    assert near(fitted.getpixel((3, 17)), RED) and near(fitted.getpixel((16, 10)), BLUE)
    assert fit_image(image, 80, 40).tobytes() == image.tobytes()
    for size in [(7, 33), (200, 10), (1, 1)]:
        assert fit_image(image, *size).size == size


def test_random_fitting_is_a_function_of_the_generator():
    image = flag((90, 40))

    def draw(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        fitted = fit_image(image, 30, 30, generator=generator, **options)
        return fitted.tobytes(), torch.rand(1, generator=generator).item()

    assert draw(3, crop="random", flip=True) == draw(3, crop="random", flip=True)
    assert len({draw(seed, crop="random")[0] for seed in range(6)}) > 3
    # what is drawn after the picture is the same whatever was asked of it
    assert len({draw(3, **options)[1] for options in [{}, {"flip": True}, {"crop": "random"}]}) == 1
    mirrored = sum(draw(seed, flip=True)[0] != draw(seed)[0] for seed in range(40))
    assert 10 < mirrored < 30


def test_wrong_requests_are_refused():
    with pytest.raises(BadConfig, match="needs a generator"):
        fit_image(flag(), 8, 8, flip=True)
    with pytest.raises(BadConfig, match="'center' or 'random', not 'middle'"):
        fit_image(flag(), 8, 8, crop="middle")  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="0x8 pixels"):
        fit_image(flag(), 0, 8)


def test_pixels_have_the_documented_range_and_shape():
    pixels = to_pixels(flag())
    assert pixels.shape == (3, 20, 40) and pixels.dtype is torch.float32 and pixels.is_contiguous()
    assert pixels[:, 10, 36].tolist() == [-1.0, -1.0, 1.0]
    assert pixels.min() == -1 and pixels.max() == 1
