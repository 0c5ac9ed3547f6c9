"""What a picture says about itself: the JSON from which it is made again, and the files that keep it.

It holds no clock time, folder or machine's name: equal pictures are equal files. A1111's text, which other programs
read, is in :mod:`studio.pipelines.parameters`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

from studio.adapters import Schedule, Strength
from studio.adapters.contract.mask import Mask
from studio.atomic import atomic_path
from studio.errors import BadConfig, BadFile, UnknownName
from studio.exif import exif_texts
from studio.given import given_path, parse_json, read_given
from studio.limits import within
from studio.pipelines.damage import damage
from studio.pipelines.drawing import SHEET, save_options, texts_of
from studio.pipelines.word_uses import WordUse

__all__ = [
    "AdapterUse",
    "open_picture",
    "read_metadata",
    "save_picture",
    "save_png",
    "strength_from_json",
    "strength_to_json",
]

FORMAT = 1
FORMATS: Final = ("PNG", "JPEG", "WEBP")
ENDINGS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter that acted on a picture.

    Args:
        name: its name in the pipeline, the one that tags use.
        strength: as :func:`strength_to_json` writes it.
        baked: whether it was folded into the weights when the picture was made.
        file: name of the file that it was loaded from, without its folder; ``None``: it was attached, not loaded.
        sha256: hash of that file.
        lora_hash: A1111's hash, of the bytes after the header: other tools find adapters by it.
        state: hash of method, config and tensors of an adapter without a file.
    """

    name: str
    strength: Any
    baked: bool = False
    file: str | None = None
    sha256: str | None = None
    lora_hash: str | None = None
    state: str | None = None


def to_json(
    *,
    version: str,
    base: Mapping[str, Any],
    request: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    rows: int,
    device: str,
    adapters: Sequence[AdapterUse],
    embeddings: Sequence[WordUse] = (),
) -> str:
    """Returns the ``studio`` text: sorted, so that equal pictures have equal texts."""
    content = {
        "tool": "adapter-studio",
        "version": version,
        "format": FORMAT,
        "base": dict(base),
        **request,
        "scheduler": dict(scheduler),
        "rows": rows,
        "device": device,
        "adapters": [{key: value for key, value in asdict(use).items() if value is not None} for use in adapters],
        **({"embeddings": [use.content for use in embeddings]} if embeddings else {}),
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)


def strength_to_json(strength: float | Strength) -> Any:
    """Returns a number, or an object with ``value`` and what else there is: ``components``, ``blocks``, ``schedule``,
    and of a mask its hash.

    Example:
        >>> strength_to_json(0.8), strength_to_json(Strength(1.0, unet=0.5))
        (0.8, {'value': 1.0, 'components': {'unet': 0.5}})
    """
    if not isinstance(strength, Strength):
        return float(strength)
    schedule, mask = strength.schedule, strength.mask
    parts = {
        "components": dict(strength.components),
        "blocks": dict(strength.blocks),
        "schedule": schedule and {"over": schedule.over, "points": [list(point) for point in schedule.points]},
        "mask": mask and mask.digest,
    }
    found = {name: part for name, part in parts.items() if part}
    return {"value": strength.value, **found} if found else strength.value


def strength_from_json(content: Any, masks: Mapping[str, Mask] | None = None) -> float | Strength:
    """Reads what :func:`strength_to_json` wrote.

    Args:
        content: the number or object. masks: hash -> mask, of those at hand; None: masks are left out.

    Raises:
        UnknownName: the strength has a mask that is not among them.
    """
    if not isinstance(content, Mapping):
        return float(content)
    schedule, digest = content.get("schedule"), content.get("mask")
    if digest is not None and masks is not None and digest not in masks:
        raise UnknownName(
            f"a strength of the picture has a mask (sha256 {digest[:12]}…) that is not among those given; give its "
            "file: masks=[...]"
        )
    return Strength(
        content["value"],
        blocks=content.get("blocks"),
        schedule=schedule and Schedule(tuple(map(tuple, schedule["points"])), over=schedule["over"]),
        mask=masks[digest] if digest is not None and masks is not None else None,
        **content.get("components", {}),
    )


def save_picture(image: Image.Image, file: str | Path, *, fresh: bool = False) -> Path:
    """Writes a picture with its texts in the format that its name ends in, all of it or nothing.

    PNG and WebP keep every pixel; JPEG is written with quality 95 and its colours in full. Equal pictures give equal
    bytes.

    Args:
        image: a picture of :meth:`ImagePipeline.generate`, or any other; the string entries ``parameters`` and
            ``studio`` of its ``info`` are written.
        file: where to, ending in ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``; missing folders are made.
        fresh: nothing may be there yet.

    Returns:
        The file.

    Raises:
        BadConfig: another ending.
        BadFile: nothing can be written there, or a JPEG cannot hold texts that long.
        Taken: something is there, and ``fresh`` says that nothing may be.
    """
    file = given_path(file)
    kind = ENDINGS.get(file.suffix.lower())
    if kind is None:
        raise BadConfig(f"{file} ends in {file.suffix!r}; pictures are written as {', '.join(ENDINGS)}")
    return _write(image, file, kind, fresh)


def save_png(image: Image.Image, file: str | Path, *, fresh: bool = False) -> Path:
    """Writes a picture with its texts as a PNG, whatever its name; as :func:`save_picture`.

    Args:
        image: the picture.
        file: where to; missing folders are made.
        fresh: nothing may be there yet.

    Returns:
        The file.

    Raises:
        BadFile: nothing can be written there.
        Taken: something is there, and ``fresh`` says that nothing may be.
    """
    return _write(image, given_path(file), "PNG", fresh)


def _write(image: Image.Image, file: Path, kind: str, fresh: bool) -> Path:
    options = {**OPTIONS[kind], **save_options(image, kind)}
    # everything that Pillow may take from image.info by itself (ICC profile, resolution) is left out
    plain = Image.frombytes(image.mode, image.size, image.tobytes())
    plain = plain.convert("RGB") if kind == "JPEG" else plain
    with atomic_path(file, fresh=fresh) as temporary:
        plain.save(temporary, format=kind, **options)
    return file


def read_metadata(picture: str | Path | Image.Image) -> dict[str, Any]:
    """Reads the ``studio`` text of a picture.

    Raises:
        BadFile: no such file, no picture, a picture that the studio did not make, or one of a newer studio.
    """
    image = picture if isinstance(picture, Image.Image) else open_picture(picture)
    what = "the picture" if isinstance(picture, Image.Image) else str(picture)
    texts = texts_of(image)
    text = texts.get("studio")
    if text is None:
        found = ", ".join(sorted(texts)) or "none"
        raise BadFile(
            f"{what} has no 'studio' text (texts found: {found}), so it was not made here or was saved by a program "
            "that drops texts; it cannot be made again from itself"
        )
    try:
        within("metadata-bytes", len(text), "has")
        content = parse_json(text)
        made_by = content["format"]
    except (ValueError, KeyError, TypeError, BadFile) as problem:
        raise BadFile(f"the 'studio' text of {what} is damaged ({problem}); it cannot be made again from it") from None
    if made_by != FORMAT:
        raise BadFile(
            f"the 'studio' text of {what} has format {str(made_by)[:40]} and this version reads {FORMAT}; update the "
            "studio"
        )
    if text == SHEET:
        raise BadFile(f"{what} is a sheet of several pictures, which is not made again from itself: name one of them")
    wrong = damage(content)
    if wrong:
        raise BadFile(f"the 'studio' text of {what} is damaged ({wrong}); it cannot be made again from it")
    return dict(content)


def open_picture(picture: str | Path) -> Image.Image:
    """Opens a picture of one of :data:`FORMATS`, with its texts.

    Raises:
        BadFile: there is none, or it cannot be read.
    """
    file = given_path(picture, "picture")
    try:
        data = read_given(file, "picture-bytes")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            within("picture-pixels", image.width * image.height, "has")
            image.load()  # texts behind the pixels are read with them
            copy = image.copy()
            copy.info.update(exif_texts(image))
            return copy
    except FileNotFoundError:
        raise BadFile(f"there is no picture {file}") from None
    except BadFile as problem:
        raise BadFile(f"{file} {problem}") from None
    except UnidentifiedImageError:
        raise BadFile(f"{file} cannot be read as a picture: it is no {' or '.join(FORMATS)} file") from None
    except Exception as problem:  # a decoder raises anything on hostile bytes; whatever it is, the file is named
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise BadFile(f"{file} cannot be read as a picture ({reason})") from None
