"""One picture: probe it without surprise, open it as plain RGB, fit it to a size, turn it into numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from studio.datasets.formats import opened, several_frames, what_else
from studio.errors import BadConfig, BadFile
from studio.exif import exif_texts
from studio.given import read_given
from studio.rgb import to_rgb

if TYPE_CHECKING:
    import torch

__all__ = ["MIN_SIDE", "Probe", "fit_image", "kept_corner", "open_image", "probe_image", "to_pixels"]

MIN_SIDE = 16  # pixels; what is smaller holds nothing to learn
THUMBNAIL = 16  # pixels; enough to see that two pictures are the same one
_ORIENTATION = 0x0112  # the EXIF tag


class HasFile(Protocol):
    """Whatever knows its file, such as an :class:`studio.datasets.folder.ImageItem`."""

    @property
    def file(self) -> Path: ...


@dataclass(frozen=True)
class Probe:
    """What one look at a picture tells.

    Args:
        width, height: pixels as it is meant to be seen, after EXIF rotation.
        mode: Pillow's name of how it is stored, ``"RGB"``.
        several: whether it has more than one frame or page.
        rotated: whether the EXIF tag turns it by a quarter.
        thumbnail: uint8 of shape (16, 16, 3).
        made_here: whether it says that the studio drew it.
    """

    width: int
    height: int
    mode: str
    several: bool
    rotated: bool
    thumbnail: numpy.ndarray = field(compare=False, repr=False)
    made_here: bool = False


def probe_image(data: bytes) -> Probe:
    """Decodes a picture completely, so that a truncated one is found, and tells what it is.

    Args:
        data: the bytes of the file.

    Raises:
        BadFile: it cannot be used; the message completes "this file ...".
    """
    if not data:
        raise BadFile("is empty (0 bytes)")
    try:
        several = several_frames(data)
        with opened(data) as image:
            rotated = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            width, height = image.size[::-1] if rotated else image.size
            # JPEG can decode at an eighth of its size, which still reads the file to its end
            image.draft(None, (width // 8, height // 8))  # type: ignore[arg-type]
            mode = image.mode
            thumbnail = _thumbnail(_upright(image))
            made = str(image.info.get("studio") or exif_texts(image).get("studio", ""))
            made_here = '"tool": "adapter-studio"' in made
            if made_here and '"kind": "sheet"' in made[:60]:
                raise BadFile("is a sheet of several pictures that the studio put together: it is no data")
    except UnidentifiedImageError:
        raise BadFile(what_else(data)) from None
    except Image.DecompressionBombError:
        raise BadFile("has more pixels than can be opened safely: make it smaller") from None
    except BadFile:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; whatever it is, the file is named
        raise BadFile(_broken(error)) from None
    if min(width, height) < MIN_SIDE:
        raise BadFile(f"is too small: {width}x{height} pixels, {MIN_SIDE} at least on each side")
    return Probe(width, height, mode, several, rotated, thumbnail, made_here)


def open_image(
    item_or_file: HasFile | Path | str, *, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Opens a picture as it is meant to be seen, in RGB.

    EXIF rotation is applied; transparency is laid over ``background``; palettes, grey, CMYK and 16-bit pictures are
    converted; an embedded colour profile is converted to sRGB; of an animation the first frame is taken.

    Args:
        item_or_file: a file, or an item of a folder that was read.
        background: red, green and blue, 0..255, behind transparent pixels.

    Returns:
        A picture of mode ``RGB``.

    Raises:
        BadFile: the file is missing, or not a picture that can be read.
    """
    file = Path(item_or_file) if isinstance(item_or_file, (str, Path)) else item_or_file.file
    try:
        data = read_given(file, "picture-bytes")
    except OSError as error:
        raise BadFile(f"cannot read the image {file}: {error.strerror}") from None
    except BadFile as error:
        raise BadFile(f"the image {file} {error}") from None
    try:
        with opened(data) as image:
            return to_rgb(_upright(image), background)
    except UnidentifiedImageError:
        raise BadFile(f"the image {file} {what_else(data)}") from None
    except BadFile as error:
        raise BadFile(f"the image {file} {error}") from None
    except Exception as error:  # as in probe_image
        raise BadFile(f"the image {file} {_broken(error)}") from None


def fit_image(
    image: Image.Image,
    width: int,
    height: int,
    *,
    crop: Literal["center", "random"] = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> Image.Image:
    """Scales a picture until it covers ``width`` x ``height`` pixels and cuts off what hangs over.

    Args:
        image: the picture.
        width, height: the size to have, in pixels.
        crop: which part is kept: the middle, or one drawn from ``generator``.
        flip: mirror it left to right for one draw in two.
        generator: the source of the draws. Three numbers are drawn from it whatever the other options are, so that
            options do not shift what is drawn later.

    Raises:
        BadConfig: an impossible size or crop, or a random choice without a generator.

    Example:
        >>> fit_image(Image.new("RGB", (640, 480)), 64, 64).size
        (64, 64)
    """
    if width < 1 or height < 1:
        raise BadConfig(f"an image cannot be made {width}x{height} pixels large: both sides must be at least 1")
    if crop not in ("center", "random"):
        raise BadConfig(f"crop must be 'center' or 'random', not {crop!r}")
    if generator is None and (flip or crop == "random"):
        raise BadConfig("a random crop or flip needs a generator, so that it can be repeated")
    scale, left, top, mirror = _kept(image.size, (width, height), crop, flip, generator)
    # one resampling step: the box is the part of the picture that is kept
    across, tall = scale * width, scale * height
    box = (left, top, min(left + across, image.width), min(top + tall, image.height))
    if box == (0, 0, width, height) and image.size == (width, height):
        fitted = image.copy()
    else:
        fitted = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(fitted) if mirror else fitted


def kept_corner(
    size: tuple[int, int], fitted: tuple[int, int], *, crop: Literal["center", "random"] = "center",
    generator: torch.Generator | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Returns where the part that :func:`fit_image` keeps begins: top and left, in pixels of the scaled picture.

    Args:
        size: width and height of the picture.
        fitted: width and height that it gets.
        crop, generator: as there.

    Example:
        >>> kept_corner((128, 64), (32, 32))
        (0, 16)
    """
    scale, left, top, _ = _kept(size, fitted, crop, False, generator)
    return round(top / scale), round(left / scale)


def _kept(
    size: tuple[int, int], fitted: tuple[int, int], crop: str, flip: bool, generator: torch.Generator | None
) -> tuple[float, float, float, bool]:
    """Pixels of the picture per pixel of the fitted one, left and top of what is kept, and whether it is mirrored."""
    along, down, mirror = 0.5, 0.5, False
    if generator is not None:
        import torch

        draws = torch.rand(3, generator=generator, device=generator.device).tolist()
        mirror = flip and draws[2] < 0.5
        if crop == "random":
            along, down = draws[:2]
    scale = min(size[0] / fitted[0], size[1] / fitted[1])
    return scale, (size[0] - scale * fitted[0]) * along, (size[1] - scale * fitted[1]) * down, mirror


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Turns a picture into numbers.

    Returns:
        A float32 tensor of shape (3, H, W) with values from -1 (black) to 1 (white).

    Example:
        >>> to_pixels(Image.new("RGB", (3, 2), (0, 255, 0)))[:, 0, 0].tolist()
        [-1.0, 1.0, -1.0]
    """
    import torch

    values = numpy.array(image.convert("RGB"), dtype=numpy.float32)
    return torch.from_numpy(values).permute(2, 0, 1).div_(127.5).sub_(1.0).contiguous()


def _upright(image: Image.Image) -> Image.Image:
    """Decodes a picture and turns it as EXIF says; the large ones must not be copied for nothing."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _thumbnail(image: Image.Image) -> numpy.ndarray:
    rgb = to_rgb(image, (255, 255, 255))
    return numpy.asarray(rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=numpy.uint8)


def _broken(error: Exception) -> str:
    detail = str(error).strip().rstrip(".").splitlines()[0][:120] if str(error).strip() else type(error).__name__
    cut = "truncated" in detail.lower() or isinstance(error, EOFError)
    return f"is {'truncated' if cut else 'damaged'} ({detail}): copy or download it again"
