"""A folder of pictures as training data: any layout, every skipped file named, the same order every time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.datasets.captions import CAPTION_SUFFIXES, METADATA_NAME, Caption, Captions, Encoding, captions_below
from studio.datasets.formats import INSTALL_HEIF, suffixes
from studio.datasets.picture import Probe, probe_image
from studio.datasets.repeats import Repeats
from studio.datasets.walk import SkippedFile, files_below
from studio.errors import BadFile
from studio.given import given_path, read_given
from studio.runs import is_run

__all__ = ["ImageFolder", "ImageItem", "SkippedFile", "read_folder", "scan_folder"]

_FOREIGN_IMAGES = tuple(".svg .eps .psd .raw .cr2 .nef .arw .dng".split())
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
class ImageFolder:
    """What a folder holds: usable pictures in a fixed order, and everything that was left out.

    Args:
        folder: where it is.
        items: the pictures, sorted by their path inside the folder.
        skipped: the rest, each with a reason.
        refused: captions and folder names that must be mended first: without them other texts would be trained.
        digest: SHA-256 over contents, captions and repeats in order; the place and the names do not matter.
        several_lines: files whose captions were several lines, which are joined.
    """

    folder: Path
    items: tuple[ImageItem, ...]
    skipped: tuple[SkippedFile, ...]
    digest: str
    several_lines: tuple[Path, ...] = ()
    refused: tuple[SkippedFile, ...] = ()

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


def read_folder(
    folder: str | Path, *, captions: bool = True, encoding: Encoding = "utf-8", generated: bool = False
) -> ImageFolder:
    """Reads a folder of pictures, nested to any depth.

    Captions come from ``dog.txt`` or ``dog.caption`` beside ``dog.png``, from ``metadata.jsonl`` (``file_name`` and
    ``text``), and else from the name of a folder like ``10_sks dog``, which also sets the repeats.

    Args:
        folder: where the pictures are.
        captions: read captions; without, every caption is ``None`` and caption files are left alone.
        encoding: what caption files without a mark are read as.
        generated: take pictures that the studio drew beside others; without, they are only taken where there is
            nothing else. The folder of a run is never data.

    Returns:
        The pictures in order of their paths, each file that is not used with the reason, and a digest of it all.

    Raises:
        BadFile: there is no such folder, it is empty, it holds no picture that can be used (naming what was found), or
            captions that cannot be read or repeats over the limit (naming all of them).
    """
    found = scan_folder(folder, captions=captions, encoding=encoding, generated=generated)
    if found.refused:
        raise BadFile(f"{found.folder} cannot be trained on as it is: {_listed(found.refused)}")
    if found.items:
        return found
    if not found.skipped:
        raise BadFile(f"the image folder {found.folder} is empty: put pictures (PNG, JPEG, WebP, ...) into it")
    raise BadFile(f"the image folder {found.folder} holds no usable image: {_listed(found.skipped)}")


def _listed(entries: tuple[SkippedFile, ...]) -> str:
    more = len(entries) - _NAMED
    return "; ".join(map(str, entries[:_NAMED])) + (f"; and {more} more" if more > 0 else "")


def scan_folder(
    folder: str | Path, *, captions: bool = True, encoding: Encoding = "utf-8", generated: bool = False
) -> ImageFolder:
    """Reads a folder as :func:`read_folder` does, and returns what must be mended, or an empty result, as it is.

    Raises:
        BadFile: there is no such folder, it cannot be listed, or it is the folder of a run.
    """
    folder = _existing(folder)
    skipped: list[SkippedFile] = []
    refused: list[SkippedFile] = []
    images, texts = _told_apart(files_below(folder, skipped), skipped)
    looked = _looked_at(images, skipped)
    if not generated:
        _leave_generated(looked, skipped)
    found = captions_below(folder, images, texts, encoding) if captions else Captions()
    skipped += [SkippedFile(file, reason) for file, reason in found.unused]
    refused += [SkippedFile(file, reason) for file, reason in found.refused]
    repeats = Repeats(folder, captions, refused)
    items = [_item(file, *looked[file], found.of.get(file), repeats) for file in images if file in looked]
    skipped += [
        SkippedFile(item.file, "is in a folder whose name says 0 repeats") for item in items if not item.repeats
    ]
    items = [item for item in items if item.repeats]
    several_lines = tuple(item.file for item in items if item.file in found.of and found.of[item.file].several_lines)
    for entries in (skipped, refused):
        entries.sort(key=lambda entry: entry.file.as_posix())
    return ImageFolder(folder, tuple(items), tuple(skipped), _digest(items), several_lines, tuple(refused))


def _existing(folder: str | Path) -> Path:
    folder = given_path(folder, "folder")
    if not folder.exists():
        raise BadFile(f"there is no image folder {folder}: check the path")
    if not folder.is_dir():
        raise BadFile(f"{folder} is a file, and a folder of images is needed: name the folder it is in")
    if is_run(folder):
        raise BadFile(f"{folder} is the folder of a run, and its pictures are previews: name the folder of the images")
    return folder


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
            data = read_given(file, "picture-bytes")
            looked[file] = probe_image(data), hashlib.sha256(data).hexdigest()
        except OSError as error:
            skipped.append(SkippedFile(file, f"cannot be read: {error.strerror}"))
        except BadFile as error:
            skipped.append(SkippedFile(file, str(error)))
    return looked


def _leave_generated(looked: dict[Path, tuple[Probe, str]], skipped: list[SkippedFile]) -> None:
    """Leaves out pictures that the studio drew, unless there are no others: then they are what was meant."""
    made = [file for file, (probe, _) in looked.items() if probe.made_here]
    if len(made) < len(looked):
        for file in made:
            del looked[file]
            skipped.append(SkippedFile(file, "was drawn by the studio, and the others were not: it is no data"))


def _item(file: Path, probe: Probe, digest: str, caption: Caption | None, repeats: Repeats) -> ImageItem:
    number, words = repeats.of(file.parent)
    text, origin = words, ("folder" if words is not None else None)
    if caption is not None:
        text, origin = caption.text, caption.origin
    return ImageItem(file, text, origin, number, probe.width, probe.height, digest, probe)  # type: ignore[arg-type]


def _is_image_name(file: Path) -> bool:
    # a name without a suffix may be a picture: its bytes tell
    suffix = file.suffix.lower()
    return not suffix or suffix in suffixes()


def _why_not(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix in (".heic", ".heif"):
        return f"is a HEIC file: {INSTALL_HEIF}"
    if suffix in _FOREIGN_IMAGES:
        return f"is a {suffix[1:].upper()} file, which cannot be read here: save it as PNG or JPEG"
    if suffix in (".json", ".csv", ".jsonl", ".yaml", ".toml"):
        return f"is not read: captions come from NAME.txt, NAME.caption or {METADATA_NAME}"
    return "is neither an image nor a caption"


def _digest(items: list[ImageItem]) -> str:
    total = hashlib.sha256()
    for item in items:
        total.update(f"{item.digest}\0{item.repeats}\0{item.caption is None}\0{item.caption or ''}\0\0".encode())
    return total.hexdigest()
