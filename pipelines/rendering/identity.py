"""What decides a picture, as one hash: the base's weights, the adapters' and pictures' bytes, and what is asked for.

Hashes of files are kept with their sizes and times, and a base's with those of all of its files, so that a list that is
done is looked through without reading an adapter or opening a base.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from studio.adapters import Strength
from studio.atomic import atomic_write
from studio.errors import BadFile
from studio.families import BASES, Base
from studio.given import open_given
from studio.pipelines.metadata import strength_to_json
from studio.pipelines.naming import adapter_file
from studio.pipelines.rendering.job import Job
from studio.pipelines.rendering.setting import Setting

__all__ = ["Known", "digest_of"]

FORMAT: Final = 1
PIECE: Final = 1 << 20
# of a job: said in other words, or no part of what decides its picture
_APART: Final = ("index", "where", "base", "adapters", "blend", "image", "mask", "wildcards")


class Known:
    """Hashes of files and bases, kept in a file.

    Args:
        file: where they are kept; whatever cannot be read of it is hashed again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._files: dict[str, Any] = {}
        self._bases: dict[str, Any] = {}
        self._new = False
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            self._files, self._bases = dict(kept["files"]), dict(kept["bases"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # none is kept yet, or not readably

    def content(self, path: Path) -> str:
        """Returns the SHA-256 (hex) of a file's bytes, or of the names and bytes of the files in a folder.

        Raises:
            BadFile: it is not there, or cannot be read.
        """
        if not path.is_dir():
            return self._one(path)
        digest = hashlib.sha256()
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            digest.update(f"{file.name} {self._one(file)}\n".encode())
        return digest.hexdigest()

    def base(self, name: str) -> str | None:
        """Returns the hash of a base that was opened before and whose files are what they were; else None."""
        kept = self._bases.get(_spelled(name))
        try:
            return str(kept["hash"]) if kept and kept["files"] == _stats(Path(kept["place"])) else None
        except (KeyError, TypeError, OSError):
            return None

    def keep_base(self, name: str, base: Base) -> str:
        """Returns the hash of an opened base, of its weights and its own scheduler, and keeps it.

        Args:
            name: what it was asked for as. base: the base, nothing baked into it.
        """
        scheduler = base.pipe.scheduler
        set_so = sorted((key, value) for key, value in scheduler.config.items() if not key.startswith("_"))
        own = f"{base.fingerprint} {type(scheduler).__name__} {set_so}"
        digest = hashlib.sha256(own.encode()).hexdigest()
        if base.folder is not None:
            place = base.folder.absolute()
            self._bases[_spelled(name)] = {"place": str(place), "files": _stats(place), "hash": digest}
            self._new = True
        return digest

    def keep(self) -> None:
        """Writes what is known, if there is something new.

        Raises:
            BadFile: it cannot be written.
        """
        if self._new:
            atomic_write(self.file, json.dumps({"files": self._files, "bases": self._bases}, sort_keys=True))
            self._new = False

    def _one(self, file: Path) -> str:
        key = str(file.absolute())
        try:
            found = _stat(file)
            kept = self._files.get(key)
            if isinstance(kept, list) and kept[:2] == found and len(kept) == 3:
                return str(kept[2])
            digest = hashlib.sha256()
            with open_given(file) as stream:
                while piece := stream.read(PIECE):
                    digest.update(piece)
        except FileNotFoundError:
            raise BadFile(f"there is no file {file}") from None
        except OSError as problem:
            raise BadFile(f"{file} cannot be read: {problem.strerror}") from None
        except BadFile as problem:
            raise BadFile(f"{file} {problem}") from None
        self._files[key] = [*found, digest.hexdigest()]
        self._new = True
        return digest.hexdigest()


def digest_of(job: Job, base: str, known: Known, setting: Setting) -> str:
    """Returns the hash of what decides a job's picture.

    Its place in the list, the names of files and folders, and the device are no part of it.

    Args:
        job: the job. base: the hash of its base. known: hashes files. setting: how the list is drawn.

    Raises:
        BadFile: a file that it needs is missing, or cannot be read.
        UnknownName: an adapter is named by a hub id that is not there.
    """
    asked = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in _APART}
    said = {name: value for name, value in asked.items() if value is not None}
    files = {name: adapter_file(file, offline=setting.offline) for name, file in job.adapters.items()}
    adapters = [[name, known.content(file)] for name, file in files.items()]
    given = {name: getattr(job, name) for name in ("image", "mask")}
    pictures = {name: known.content(Path(file)) for name, file in given.items() if file is not None}
    content = {
        "format": FORMAT, "base": base, "adapters": adapters, "blend": _plain(job.blend), **said, **pictures,
        **setting.decisive,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(blend: Mapping[str, Any]) -> dict[str, Any]:
    return {name: strength_to_json(one) if isinstance(one, Strength) else one for name, one in blend.items()}


def _spelled(name: str) -> str:
    path = Path(name)
    return name if name in BASES or not path.exists() else str(path.absolute())


def _stats(place: Path) -> dict[str, list[int]]:
    """Size and time of every file of a base."""
    return {str(file.relative_to(place.parent)): _stat(file) for file in _files(place)}


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names if "__pycache__" not in folder)


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
