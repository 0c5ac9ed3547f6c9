"""Captions of pictures: ``dog.txt`` or ``dog.caption`` beside ``dog.png``, or lines of ``metadata.jsonl``."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from studio.errors import BadFile
from studio.given import is_blank, parse_json, read_given

__all__ = ["CAPTION_SUFFIXES", "METADATA_NAME", "Caption", "Captions", "Encoding", "captions_below", "read_captions"]

CAPTION_SUFFIXES = (".txt", ".caption")  # in this order where both are there
METADATA_NAME = "metadata.jsonl"
Encoding = Literal["utf-8", "windows-1252"]
"""What a text without a mark is read as. Windows-1252 takes nearly any bytes, so it is only taken when it is named."""
_TEXT_KEYS = ("text", "caption", "prompt")
MARKS: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
LINE_END: Final = re.compile("\r\n|\r|\n")  # not str.splitlines, which cuts JSON at a U+2028 in a text


@dataclass(frozen=True)
class Caption:
    """One caption, where it stands (``"dog.txt"``, ``"metadata.jsonl:3"``), and whether it was several lines."""

    text: str
    source: str
    origin: Literal["file", "metadata"]
    several_lines: bool = False


@dataclass
class Captions:
    """The captions of the pictures of one folder.

    Args:
        of: the caption of each picture that has one.
        unused: each caption that is not used and need not be, with the reason.
        refused: each caption that cannot be used, so that its picture would be trained as if it had none.
    """

    of: dict[Path, Caption] = field(default_factory=dict)
    unused: list[tuple[Path, str]] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)


def read_captions(images: Iterable[Path], others: Iterable[Path], encoding: Encoding = "utf-8") -> Captions:
    """Finds the caption of each picture of one folder.

    ``dog.txt`` wins over ``dog.caption``, and both over ``metadata.jsonl``; what loses is reported. A name counts as
    equal however its accents are composed.

    Args:
        images: the pictures of the folder (readable or not: a caption of a broken picture is not an orphan).
        others: the caption files of the same folder.
        encoding: what a file without a mark is read as.

    Returns:
        The captions that are used, and the files or lines that are not, with the reason.
    """
    images, others = list(images), sorted(others)
    result = Captions()
    by_name: dict[str, dict[Path, None]] = defaultdict(dict)  # in order, and each once
    for image in images:
        by_name[_composed(image.stem)][image] = by_name[_composed(image.name)][image] = None
    for suffix in CAPTION_SUFFIXES:
        for file in (file for file in others if file.suffix.lower() == suffix):
            _read_file(file, list(by_name.get(_composed(file.stem), ())), encoding, result)
    for file in others:
        if file.name == METADATA_NAME:
            _read_metadata(file, images, encoding, result)
    return result


def captions_below(
    folder: Path, images: Iterable[Path], texts: Iterable[Path], encoding: Encoding = "utf-8"
) -> Captions:
    """Finds the captions of pictures below a folder.

    A caption file serves the pictures beside it, ``metadata.jsonl`` also those further down.

    Args:
        folder: the outermost folder.
        images: the pictures, at any depth.
        texts: the caption files, at any depth.
        encoding: what a file without a mark is read as.
    """
    beside, here, below = defaultdict(list), defaultdict(list), defaultdict(list)
    for file in texts:
        beside[file.parent].append(file)
    for image in images:
        here[image.parent].append(image)
        for place in _up_to(folder, image.parent):
            if place in beside:
                below[place].append(image)
    result = Captions()
    # the innermost first: what stands nearer to a picture wins
    for place in sorted(beside, key=lambda place: (-len(place.parts), place.as_posix())):
        sidecars = [file for file in beside[place] if file.name != METADATA_NAME]
        near = read_captions(here[place], sidecars, encoding)
        tables = [file for file in beside[place] if file.name == METADATA_NAME]
        far = read_captions(below[place], tables, encoding)
        result.unused += near.unused + far.unused
        result.refused += near.refused + far.refused
        for captions in (near, far):
            for image, caption in captions.of.items():
                have = result.of.setdefault(image, caption)
                if have is not caption:
                    reason = f"is a second caption of {image.name}: {have.source} is used"
                    result.unused.append((place / caption.source, reason))
    return result


def _up_to(folder: Path, place: Path) -> Iterator[Path]:
    """A folder below ``folder`` and those around it, up to and including ``folder``."""
    yield place
    while place != folder:
        place = place.parent
        yield place


def _read_file(file: Path, owners: Sequence[Path], encoding: Encoding, result: Captions) -> None:
    if not owners:
        result.unused.append((file, "is a caption without an image: no image has that name"))
        return
    try:
        text = _read_text(file, encoding, "caption-bytes")
    except BadFile as error:
        needed = any(owner not in result.of for owner in owners)
        (result.refused if needed else result.unused).append((file, str(error)))
        return
    _give(result, owners, Caption(_one_line(text), file.name, "file", "\n" in text.strip()), file)


def _give(result: Captions, owners: Iterable[Path], caption: Caption, file: Path) -> None:
    for image in owners:
        have = result.of.get(image)
        if have is None:
            result.of[image] = caption
        else:
            same = "says the same" if have.text == caption.text else "says something else"
            result.unused.append((file, f"is a second caption of {image.name}: {have.source} is used, this {same}"))


def _read_metadata(file: Path, images: list[Path], encoding: Encoding, result: Captions) -> None:
    by_name = {
        _composed(image.relative_to(file.parent).as_posix()): image
        for image in images
        if image.is_relative_to(file.parent)
    }
    try:
        lines = LINE_END.split(_read_text(file, encoding, "data-bytes"))
    except BadFile as error:
        result.refused.append((file, str(error)))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = file.with_name(f"{file.name}:{number}")
        try:
            name, text = _metadata_line(line)
        except BadFile as error:
            result.refused.append((place, str(error)))
            continue
        image = by_name.get(_composed(name))
        if image is None:
            result.unused.append((place, f"is a caption without an image: there is no {name!r}"))
        else:
            _give(result, [image], Caption(_one_line(text), place.name, "metadata", "\n" in text.strip()), place)


def _metadata_line(line: str) -> tuple[str, str]:
    try:
        row: Any = parse_json(line)
    except ValueError as error:
        raise BadFile(f"is not valid JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise BadFile('has no "file_name" that is a text')
    text = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
    if text is None:
        raise BadFile(f"has no caption: one of {', '.join(_TEXT_KEYS)} is needed")
    if is_blank(text):
        raise BadFile("has an empty caption: write one, or remove the line")
    return Path(row["file_name"]).as_posix(), text


def _read_text(file: Path, encoding: Encoding, most: str) -> str:
    """Reads UTF-8, UTF-16 with its mark, or what is asked for; anything else is refused rather than guessed."""
    try:
        data = read_given(file, most)
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from None
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    try:
        text = data.decode(marked or encoding)
    except UnicodeDecodeError as error:
        other = "" if marked or encoding != "utf-8" else ", or say --caption-encoding windows-1252 if it is that"
        name = "UTF-16" if marked == "utf-16" else "UTF-8" if marked or encoding == "utf-8" else "Windows-1252"
        raise BadFile(f"is not {name} text ({error.reason} at byte {error.start}): save it as UTF-8{other}") from None
    if "\0" in text:
        raise BadFile("is not a text file: it holds zero bytes")
    if is_blank(text):
        raise BadFile("is an empty caption: write one, or remove the file")
    return text


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _one_line(text: str) -> str:
    return " ".join(text.split())
