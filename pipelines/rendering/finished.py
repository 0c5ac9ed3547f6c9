"""Which jobs are done: the picture is there, whole, and says itself which job made it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from studio.pipelines.drawing import Drawing, save_options, texts_of
from studio.pipelines.metadata import FORMATS, OPTIONS

__all__ = ["data_of", "job_in"]


def data_of(picture: Drawing, digest: str, kind: str = "PNG") -> bytes:
    """Returns the bytes of a picture's file, whose ``studio`` text names the job that made it.

    Args:
        picture: with its texts. digest: the hash of the job.
        kind: the format, as Pillow names it: PNG, JPEG or WEBP.

    Raises:
        BadFile: a JPEG cannot hold texts that long.
    """
    said = {**json.loads(picture.info["studio"]), "job": digest}
    plain = Image.frombytes(picture.mode, picture.size, picture.tobytes())  # nothing but pixels
    plain.info = {
        "parameters": picture.info["parameters"],
        "studio": json.dumps(said, sort_keys=True, ensure_ascii=False, allow_nan=False),
    }
    stream, options = io.BytesIO(), {**OPTIONS[kind], **save_options(plain, kind)}
    plain.info = {}
    plain.save(stream, format=kind, **options)
    return stream.getvalue()


def job_in(file: Path, *, whole: bool = True) -> str | None:
    """Returns the hash of the job that made a picture; None where there is none, or what no job made.

    Of a PNG, only the beginning and the end are read.

    Args:
        file: where it is. whole: a picture that is cut off is none.
    """
    try:
        with file.open("rb") as stream, contextlib.closing(Image.open(stream, formats=FORMATS)) as image:
            text = image.info.get("studio") or texts_of(image)["studio"]  # the latter decodes a PNG
            found = json.loads(text)["job"]
            if whole and not _ends(stream, str(image.format)):
                return None
    except Exception:  # whatever else stands there is no picture of ours
        return None
    return found if isinstance(found, str) else None


def _ends(stream: BinaryIO, kind: str) -> bool:
    """Whether a file ends as every whole one of its format does."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(8)
    stream.seek(max(size - 8, 0))
    end = stream.read(8)
    if kind == "WEBP":
        length = int.from_bytes(start[4:8], "little") + 8
        return size in (length, length + 1)
    return end == b"IEND\xaeB`\x82" if kind == "PNG" else end.endswith(b"\xff\xd9")
