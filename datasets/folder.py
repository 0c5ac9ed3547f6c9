"""A folder of pictures as training data: any layout, every skipped file named, the same order every time."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from studio.datasets.captions import CAPTION_SUFFIXES, METADATA_NAME, Caption, Captions, read_captions
from studio.datasets.picture import Probe, probe_image
from studio.errors import BadFile

__all__ = ["ImageFolder", "ImageItem", "SkippedFile", "read_folder", "scan_folder"]

_REPEATS = re.compile(r"(\d+)_(.+)")  # kohya's folder names: "10_sks dog"
_FOREIGN_IMAGES = (".heic", ".heif", ".svg", ".psd", ".raw", ".cr2", ".nef", ".arw", ".dng")
_NAMED = 6  # skipped files that an error message names before it only counts them


@dataclass(frozen=True)
class ImageItem:
    """One picture of a folder.

    Args:
        file: where it is.
        caption: its caption, ``None`` where it has none.
        caption_from: ``"file"``, ``"metadata"``, or ``"folder"`` for the words of a folder named like ``10_sks dog``.
        repeats: how often it is drawn for each time that a picture without a repeats folder is drawn.
        width, height: pixels, after EXIF rotation.
        digest: SHA-256 of the bytes of the file, in hexadecimal.
        probe: what else the look at the picture told.
    """

    file: Path
    caption: str | None
    caption_from: Literal["file", "metadata", "folder"] | None
    repeats: int
    width: int
    height: int
    digest: str
    probe: Probe


@dataclass(frozen=True)
class SkippedFile:
    """A file, or a line of ``metadata.jsonl``, that is not used; ``reason`` completes "this file ..."."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file.name} {self.reason}"


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds: usable pictures in a fixed order, and everything that was left out.

    Args:
        folder: where it is.
        items: the pictures, sorted by their path inside the folder.
        skipped: the rest, each with a reason.
        digest: SHA-256 over contents, captions and repeats in order; the place and the names do not matter.
        several_lines: files whose captions were several lines, which are joined.
    """

    folder: Path
    items: tuple[ImageItem, ...]
    skipped: tuple[SkippedFile, ...]
    digest: str
    several_lines: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ImageItem]:
        return iter(self.items)

    @property
    def duplicates(self) -> tuple[tuple[ImageItem, ...], ...]:
        """Groups of pictures whose files are byte for byte the same."""
        groups: dict[str, list[ImageItem]] = defaultdict(list)
        for item in self.items:
            groups[item.digest].append(item)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def read_folder(folder: str | Path, *, captions: bool = True) -> ImageFolder:
    """Reads a folder of pictures, nested to any depth.

    Captions come from ``dog.txt`` or ``dog.caption`` beside ``dog.png``, from ``metadata.jsonl`` (``file_name`` and
    ``text``), and else from the name of a folder like ``10_sks dog``, which also sets the repeats.

    Args:
        folder: where the pictures are.
        captions: read captions; without, every caption is ``None`` and caption files are left alone.

    Returns:
        The pictures in order of their paths, each file that is not used with the reason, and a digest of it all.

    Raises:
        BadFile: there is no such folder, it is empty, or it holds no picture that can be used (naming what was found).
    """
    found = scan_folder(folder, captions=captions)
    if found.items:
        return found
    if not found.skipped:
        raise BadFile(f"the image folder {found.folder} is empty: put pictures (PNG, JPEG, WebP, ...) into it")
    named = "; ".join(map(str, found.skipped[:_NAMED]))
    more = len(found.skipped) - _NAMED
    rest = f"; and {more} more" if more > 0 else ""
    raise BadFile(f"the image folder {found.folder} holds no usable image: {named}{rest}")


def scan_folder(folder: str | Path, *, captions: bool = True) -> ImageFolder:
    """Reads a folder as :func:`read_folder` does, and returns an empty result where nothing in it can be used.

    Raises:
        BadFile: there is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    if not folder.exists():
        raise BadFile(f"there is no image folder {folder}: check the path")
    if not folder.is_dir():
        raise BadFile(f"{folder} is a file, and a folder of images is needed: name the folder it is in")
    skipped: list[SkippedFile] = []
    images, texts = _told_apart(_files(folder, skipped), skipped)
    looked = _looked_at(images, skipped)
    found = _captions(images, texts) if captions else Captions()
    skipped += [SkippedFile(file, reason) for file, reason in found.unused]
    items = [_item(file, *looked[file], found.of.get(file), folder, captions) for file in images if file in looked]
    skipped += [
        SkippedFile(item.file, "is in a folder whose name says 0 repeats") for item in items if not item.repeats
    ]
    items = [item for item in items if item.repeats]
    several_lines = tuple(item.file for item in items if item.file in found.of and found.of[item.file].several_lines)
    skipped.sort(key=lambda entry: entry.file.as_posix())
    return ImageFolder(folder, tuple(items), tuple(skipped), _digest(items), several_lines)


def _told_apart(files: list[Path], skipped: list[SkippedFile]) -> tuple[list[Path], list[Path]]:
    """Sorts files by name into pictures and captions; what is neither is skipped."""
    images: list[Path] = []
    texts: list[Path] = []
    for file in files:
        if file.name.startswith(".") or file.name.lower() in ("thumbs.db", "desktop.ini"):
            skipped.append(SkippedFile(file, "is a hidden or system file"))
        elif _is_image_name(file):
            images.append(file)
        elif file.suffix.lower() in CAPTION_SUFFIXES or file.name == METADATA_NAME:
            texts.append(file)
        else:
            skipped.append(SkippedFile(file, _why_not(file)))
    return images, texts


def _looked_at(images: list[Path], skipped: list[SkippedFile]) -> dict[Path, tuple[Probe, str]]:
    """Decodes each picture; returns what the look told and the digest of the bytes of those that can be used."""
    looked: dict[Path, tuple[Probe, str]] = {}
    for file in images:
        try:
            data = file.read_bytes()
            looked[file] = probe_image(data), hashlib.sha256(data).hexdigest()
        except OSError as error:
            skipped.append(SkippedFile(file, f"cannot be read: {error.strerror}"))
        except BadFile as error:
            skipped.append(SkippedFile(file, str(error)))
    return looked


def _item(file: Path, probe: Probe, digest: str, caption: Caption | None, folder: Path, captions: bool) -> ImageItem:
    repeats, words = _repeats(file, folder)
    text, origin = (words if captions else None), ("folder" if captions and words is not None else None)
    if caption is not None:
        text, origin = caption.text, caption.origin
    return ImageItem(file, text, origin, repeats, probe.width, probe.height, digest, probe)  # type: ignore[arg-type]


def _files(folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """All files below ``folder``, sorted by path; links are followed, once."""
    found: list[Path] = []
    seen: set[Path] = set()

    def unreadable(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), f"cannot be listed: {error.strerror}"))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(place)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        found += [here / name for name in names]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _is_image_name(file: Path) -> bool:
    # a name without a suffix may be a picture: its bytes tell
    suffix = file.suffix.lower()
    return suffix not in (*CAPTION_SUFFIXES, ".pdf") and (not suffix or suffix in Image.registered_extensions())


def _why_not(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix in _FOREIGN_IMAGES:
        return f"is a {suffix[1:].upper()} file, which cannot be read here: save it as PNG or JPEG"
    if suffix in (".json", ".csv", ".jsonl", ".yaml", ".toml"):
        return f"is not read: captions come from NAME.txt, NAME.caption or {METADATA_NAME}"
    return "is neither an image nor a caption"


def _captions(images: list[Path], texts: list[Path]) -> Captions:
    """Captions by folder: a caption file serves the pictures beside it, ``metadata.jsonl`` also those further down."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for file in texts:
        beside[file.parent].append(file)
    result = Captions()
    # the innermost first: what stands nearer to a picture wins
    for place in sorted(beside, key=lambda place: (-len(place.parts), place.as_posix())):
        sidecars = [file for file in beside[place] if file.name != METADATA_NAME]
        near = read_captions([image for image in images if image.parent == place], sidecars)
        tables = [file for file in beside[place] if file.name == METADATA_NAME]
        far = read_captions([image for image in images if image.is_relative_to(place)], tables)
        result.unused += near.unused + far.unused
        for captions in (near, far):
            for image, caption in captions.of.items():
                have = result.of.setdefault(image, caption)
                if have is not caption:
                    reason = f"is a second caption of {image.name}: {have.source} is used"
                    result.unused.append((place / caption.source, reason))
    return result


def _repeats(file: Path, folder: Path) -> tuple[int, str | None]:
    """Repeats and words of the nearest folder named like ``10_sks dog``, up to and including the one that was given."""
    for place in file.parents:
        match = _REPEATS.fullmatch(place.resolve().name if place == folder else place.name)
        if match:
            return int(match[1]), " ".join(match[2].split())
        if place == folder:
            break
    return 1, None


def _digest(items: list[ImageItem]) -> str:
    total = hashlib.sha256()
    for item in items:
        total.update(f"{item.digest}\0{item.repeats}\0{item.caption is None}\0{item.caption or ''}\0\0".encode())
    return total.hexdigest()
