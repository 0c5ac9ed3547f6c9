"""Folders of sounds or of pictures with a text for each: beside it, or in ``metadata.jsonl``.

``hello.txt`` beside ``hello.wav`` has its text, and so has a line ``{"file_name": "hello.wav", "text": "hello"}`` of
``metadata.jsonl``, as :mod:`studio.datasets.captions` reads them for pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from studio.datasets.captions import CAPTION_SUFFIXES, METADATA_NAME, captions_below
from studio.datasets.walk import SkippedFile, files_below
from studio.errors import BadFile

__all__ = ["MEDIA", "read_beside"]

MEDIA: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
}
"""Field of a record -> endings of the files that it names."""


def read_beside(folder: Path) -> tuple[list[tuple[dict[str, Any], str]], tuple[str, ...]]:
    """Reads a folder; every file with a text is a record with the fields ``audio`` or ``image``, a path, and ``text``.

    Args:
        folder: the folder; those in it are read too.

    Returns:
        The fields and the place of each, sorted by path, and what was left aside, in sentences.

    Raises:
        BadFile: there is neither a sound nor a picture, there are both, a text cannot be read, or none has one.
    """
    skipped: list[SkippedFile] = []
    files = files_below(folder, skipped)
    kinds = {file: kind for file in files for kind, ends in MEDIA.items() if file.suffix.lower() in ends}
    counts = Counter(kinds.values())
    if len(counts) != 1:
        found = " and ".join(f"{count} {kind} files" for kind, count in counts.items()) or "neither sounds nor pictures"
        raise BadFile(f"{folder} holds {found}: give a folder of sounds, or of pictures, or a file of samples")
    texts = [file for file in files if file.suffix.lower() in CAPTION_SUFFIXES or file.name == METADATA_NAME]
    read = captions_below(folder, kinds, texts)
    if read.refused:
        file, reason = read.refused[0]
        raise BadFile(f"{file} {reason}")
    kind = next(iter(counts))
    made = [({kind: str(file), "text": read.of[file].text}, str(file)) for file in kinds if file in read.of]
    bare = [file.name for file in kinds if file not in read.of]
    if not made:
        raise BadFile(
            f"{folder}: none of its {len(kinds)} {kind} files has a text: put {Path(bare[0]).stem}.txt beside {bare[0]}"
        )
    notes = [f"{file.name} {reason}" for file, reason in read.unused] + [str(one) for one in skipped]
    if bare:
        notes.append(f"{len(bare)} files have no text and are not used: {', '.join(bare[:5])}")
    return made, tuple(notes)
