"""Sounds and what is said in them, for speech recognition.

The forms of a record: ``{"audio": "clips/1.wav", "text": "seven"}``, also with ``file_name`` or ``path``, and
``transcript``, ``transcription`` or ``sentence``. A path begins at the folder of the file that names it. In a data set
of Hugging Face's ``datasets`` a sound may stand as its file has it, ``{"bytes": ..., "path": ...}``, or as numbers,
``{"array": ..., "sampling_rate": ...}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile
from studio.given import given_path
from studio.shown import short
from studio.sounds import Sound, read_sound, sound_of

__all__ = ["Spoken", "spoken_of"]

HEARD: Final = ("audio", "file_name", "path")
SAID: Final = ("text", "transcript", "transcription", "sentence")


@dataclass(frozen=True)
class Spoken(Sample):
    """A sound, and what is said in it.

    Args:
        line: its number in the source, from 1 on. name: what messages call the sound. text: what is said.
        sound_hash: SHA-256 (hex) of the sound. source: where it is read from: a file, its bytes, or a sound.
    """

    name: str = ""
    text: str = ""
    sound_hash: str = ""
    source: Path | bytes | Sound = field(default=b"", repr=False, compare=False)

    @property
    def content(self) -> Any:
        return [self.sound_hash, self.text]

    @property
    def given(self) -> Any:
        return self.sound_hash

    def sound(self) -> Sound:
        """Reads the sound; it was looked at when the sample was made.

        Raises:
            BadFile: it cannot be read any more.
        """
        if isinstance(self.source, Sound):
            return self.source
        return read_sound(self.source) if isinstance(self.source, Path) else sound_of(self.source, self.name)


def spoken_of(record: Record) -> tuple[Spoken, Collection[str]]:
    """Makes a sample of a record, and looks whether the sound can be read.

    Raises:
        BadFile: it is of none of the forms or of two of them, there is no text, or the sound cannot be read.
        MissingPackage: the sound is no WAV file, and what reads others is not installed.
    """
    entry, where = record.fields, record.where
    heard, said = [name for name in HEARD if name in entry], [name for name in SAID if name in entry]
    if "audio" in heard:
        heard = ["audio"]
    if len(heard) > 1 or len(said) > 1:
        names = " and ".join(map(repr, heard if len(heard) > 1 else said))
        raise BadFile(f"{where}: it has {names}; which one is meant?")
    if not heard or not said:
        raise forms_missed(record, "audio and text", (*HEARD, *SAID))
    text = text_field(entry, said[0], where, answer=True)
    name, source = _source(entry[heard[0]], heard[0], record)
    sample = Spoken(record.line, name, text, source=source)
    sound = sample.sound()
    digest = hashlib.sha256(f"{sound.rate} ".encode() + sound.samples.tobytes()).hexdigest()
    return Spoken(record.line, name, text, digest, source), (heard[0], said[0])


def _source(value: Any, name: str, record: Record) -> tuple[str, Path | bytes | Sound]:
    """Returns what a sound is called, and where it is read from."""
    if isinstance(value, (str, Path)) and str(value).strip():
        path = given_path(value, name)
        path = path if record.folder is None else record.folder / path
        return str(path), path
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return str(value.get("path") or f"of {record.where}"), value["bytes"]
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value):
        samples, rate = _numbers(value["array"]), value["sampling_rate"]
        numbers = samples.ndim == 1 and samples.size and samples.dtype.kind == "f" and numpy.isfinite(samples).all()
        if numbers and isinstance(rate, int) and rate > 0:
            return f"of {record.where}", Sound(samples.astype(numpy.float32), rate)
    raise BadFile(f"{record.where}: {name} must be the path of a sound, not {short(value)}")


def _numbers(array: Any) -> NDArray[Any]:
    """An array of what is given; one of no number where it is none."""
    try:
        return numpy.asarray(array)
    except (TypeError, ValueError):  # rows of several lengths
        return numpy.empty(0)
