"""How often a picture is drawn, and what it is called, by the name of its folder: kohya's ``10_sks dog``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from studio.datasets.walk import SkippedFile
from studio.errors import BadFile
from studio.given import is_text
from studio.limits import within

__all__ = ["Repeats"]

_REPEATS = re.compile(r"(\d+)_(.+)")


@dataclass
class Repeats:
    """Repeats and words of the nearest folder named like ``10_sks dog``, up to and including the one that was given.

    Args:
        folder: the one that was given.
        captions: whether the words are captions.
        refused: takes the folders whose names cannot be meant so.
        known: what is known of folders by now.
    """

    folder: Path
    captions: bool
    refused: list[SkippedFile]
    known: dict[Path, tuple[int, str | None]] = field(default_factory=dict)

    def of(self, place: Path) -> tuple[int, str | None]:
        """Returns repeats and words for the pictures in a folder; 1 and None where no name says any."""
        asked = []
        while place not in self.known:
            asked.append(place)
            match = _REPEATS.fullmatch(place.resolve().name if place == self.folder else place.name)
            if match:
                self.known[place] = self._read(place, match[1], " ".join(match[2].split()))
            elif place == self.folder:
                self.known[place] = (1, None)
            else:
                place = place.parent
        self.known.update(dict.fromkeys(asked, self.known[place]))
        return self.known[place]

    def _read(self, place: Path, digits: str, words: str) -> tuple[int, str | None]:
        number = int(digits) if len(digits) < 19 else 10**18
        if not is_text(words):
            self.refused.append(
                SkippedFile(place, "has a name that is not UTF-8, so its words are no caption: rename it")
            )
            return 1, None
        try:
            within("repeats", number, "asks for")
        except BadFile as error:
            self.refused.append(
                SkippedFile(place, f"{error}; a folder named by a date must not begin with it: rename it")
            )
            return 1, None
        return number, words if self.captions else None
