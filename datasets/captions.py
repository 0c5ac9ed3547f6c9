"""Captions of pictures: ``dog.txt`` or ``dog.caption`` beside ``dog.png``, or lines of ``metadata.jsonl``."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from studio.errors import BadFile

__all__ = ["CAPTION_SUFFIXES", "METADATA_NAME", "Caption", "Captions", "read_captions"]

CAPTION_SUFFIXES = (".txt", ".caption")  # in this order where both are there
METADATA_NAME = "metadata.jsonl"
_TEXT_KEYS = ("text", "caption", "prompt")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Caption:
    """One caption, where it stands (``"dog.txt"``, ``"metadata.jsonl:3"``), and whether it was several lines."""

    text: str
    source: str
    origin: Literal["file", "metadata"]
    several_lines: bool = False


@dataclass
class Captions:
    """The captions of the pictures of one folder, by picture, and each caption that is not used, with the reason."""

    of: dict[Path, Caption] = field(default_factory=dict)
    unused: list[tuple[Path, str]] = field(default_factory=list)


def read_captions(images: Iterable[Path], others: Iterable[Path]) -> Captions:
    """Finds the caption of each picture of one folder.

    ``dog.txt`` wins over ``dog.caption``, and both over ``metadata.jsonl``; what loses is reported.

    Args:
        images: the pictures of the folder (readable or not: a caption of a broken picture is not an orphan).
        others: the caption files of the same folder.

    Returns:
        The captions that are used, and the files or lines that are not, with the reason.
    """
    images, others = list(images), sorted(others)
    result = Captions()
    by_suffix = {suffix: [file for file in others if file.suffix.lower() == suffix] for suffix in CAPTION_SUFFIXES}
    for suffix in CAPTION_SUFFIXES:
        for file in by_suffix[suffix]:
            owners = [image for image in images if file.stem in (image.stem, image.name)]
            if not owners:
                result.unused.append((file, "is a caption without an image: no image has that name"))
                continue
            try:
                text = _read_text(file)
            except BadFile as error:
                result.unused.append((file, str(error)))
                continue
            _give(result, owners, Caption(_one_line(text), file.name, "file", "\n" in text.strip()), file)
    for file in others:
        if file.name == METADATA_NAME:
            _read_metadata(file, images, result)
    return result


def _give(result: Captions, owners: Iterable[Path], caption: Caption, file: Path) -> None:
    for image in owners:
        have = result.of.get(image)
        if have is None:
            result.of[image] = caption
        else:
            same = "says the same" if have.text == caption.text else "says something else"
            result.unused.append((file, f"is a second caption of {image.name}: {have.source} is used, this {same}"))


def _read_metadata(file: Path, images: list[Path], result: Captions) -> None:
    by_name = {
        image.relative_to(file.parent).as_posix(): image for image in images if image.is_relative_to(file.parent)
    }
    try:
        lines = _read_text(file).splitlines()
    except BadFile as error:
        result.unused.append((file, str(error)))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = file.with_name(f"{file.name}:{number}")
        try:
            name, text = _metadata_line(line)
        except BadFile as error:
            result.unused.append((place, str(error)))
            continue
        image = by_name.get(name)
        if image is None:
            result.unused.append((place, f"is a caption without an image: there is no {name!r}"))
        else:
            _give(result, [image], Caption(_one_line(text), place.name, "metadata", "\n" in text.strip()), place)


def _metadata_line(line: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadFile(f"is not valid JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise BadFile('has no "file_name" that is a text')
    text = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
    if text is None:
        raise BadFile(f"has no caption: one of {', '.join(_TEXT_KEYS)} is needed")
    if not text.strip():
        raise BadFile("has an empty caption: write one, or remove the line")
    return Path(row["file_name"]).as_posix(), text


def _read_text(file: Path) -> str:
    """Reads UTF-8, or UTF-16 with its mark; anything else is refused rather than guessed."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise BadFile("is not a text file: it holds zero bytes")
    if not text.strip():
        raise BadFile("is an empty caption: write one, or remove the file")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
