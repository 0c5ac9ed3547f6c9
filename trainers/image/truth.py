"""How like the truth previews are, where the truth is known: the subject is one of the packaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["known_subject", "likeness"]


def known_subject(digests: Iterable[str]) -> str | None:
    """Returns the name of the packaged subject whose pictures these are; None for all others.

    Args:
        digests: SHA-256 of the pictures' files, in hexadecimal.

    Example:
        >>> known_subject(["00"]), known_subject([])
        (None, None)
    """
    import hashlib

    from studio.families.emoji_world import INSTANCE_FOLDER

    asked = set(digests)
    for folder in sorted(INSTANCE_FOLDER.iterdir()) if asked else ():
        if asked <= {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.png")}:
            return folder.name
    return None


def likeness(pictures: Sequence[Image], subject: str) -> float:
    """Returns the mean similarity of pictures to the true drawing on the background that each has; 1 is the truth.

    Args:
        pictures: 64 × 64 pixels.
        subject: of :func:`known_subject`.
    """
    from studio.fidelity import background, similarity

    found = [similarity([picture], subject, background(picture))[0] for picture in pictures]
    return sum(found) / len(found)
