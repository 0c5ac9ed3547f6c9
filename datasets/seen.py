"""Pictures and what is to be said of them: captions, answers to questions, conversations.

The forms of a record, each with ``image`` (or ``file_name``), a path that begins at the folder of the file that names
it:

- ``{"image": "1.png", "text": "a red square"}``, or ``caption``;
- ``{"image": "1.png", "question": "What colour?", "answer": "red"}``, or ``prompt`` and ``completion``;
- ``{"image": "1.png", "messages": [{"role": "user", "content": "What colour?"}, {"role": "assistant", ...}]}``, of
  which the last turn is learned.

In a data set of Hugging Face's ``datasets`` a picture may stand as its file has it, ``{"bytes": ...}``, or as Pillow's.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from studio.datasets.chat import sample_of
from studio.datasets.picture import open_image
from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile
from studio.given import given_path
from studio.rgb import to_rgb
from studio.shown import short

__all__ = ["Seen", "seen_of"]

PICTURE: Final = ("image", "file_name")
SAID: Final = ("text", "caption")
ASKED: Final = {"question": "answer", "prompt": "completion"}


@dataclass(frozen=True)
class Seen(Sample):
    """A picture, and what is to be said of it.

    Args:
        line: its number in the source, from 1 on. name: what messages call the picture. text: what is to be said.
        turns: role and content of each turn before that; none of a caption. picture_hash: SHA-256 (hex) of the pixels.
        source: where the picture is read from: a file, or a picture.
    """

    name: str = ""
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    picture_hash: str = ""
    source: Path | Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def content(self) -> Any:
        return [self.picture_hash, self.turns, self.text]

    @property
    def given(self) -> Any:
        return [self.picture_hash, self.turns]

    def picture(self) -> Image.Image:
        """Opens the picture in RGB; it was looked at when the sample was made.

        Raises:
            BadFile: it cannot be read any more.
        """
        assert self.source is not None, "a sample has a picture"
        return self.source if isinstance(self.source, Image.Image) else open_image(self.source)


def seen_of(record: Record) -> tuple[Seen, Collection[str]]:
    """Makes a sample of a record, and looks whether the picture can be read.

    Raises:
        BadFile: it is of none of the forms or of two of them, there is no text, or the picture cannot be read.
    """
    entry, where = record.fields, record.where
    shown = next((name for name in PICTURE if name in entry), None)
    said = [name for name in (*SAID, *ASKED.values(), "messages") if name in entry]
    if len(said) > 1:
        raise BadFile(f"{where}: it has {' and '.join(map(repr, said))}; which one is meant?")
    asks = next((name for name, answer in ASKED.items() if said == [answer]), None)
    if shown is None or not said or (asks is not None and asks not in entry):
        wanted = "image and text; image, question and answer; or image and messages"
        raise forms_missed(record, wanted, (*PICTURE, *SAID, *ASKED, *ASKED.values(), "messages"))
    known = tuple(name for name in (shown, asks, said[0]) if name is not None)
    if said == ["messages"]:
        *turns, (_, text) = _conversation(record)
    else:
        text = text_field(entry, said[0], where, answer=True)
        turns = [] if asks is None else [("user", text_field(entry, asks, where))]
    name, source = _source(entry[shown], shown, record)
    picture = Seen(record.line, source=source).picture()
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    return Seen(record.line, name, text.strip(), tuple(turns), digest, source), known


def _conversation(record: Record) -> list[tuple[str, str]]:
    """Returns the turns of a conversation whose last one answers."""
    sample, _ = sample_of(Record(record.line, record.where, {"messages": record.fields["messages"]}))
    turns = list(sample.turns)
    if turns[-1][0] != "assistant":
        raise BadFile(f"{record.where}: the last turn must be the assistant's, which is learned")
    return turns


def _source(value: Any, name: str, record: Record) -> tuple[str, Path | Image.Image]:
    """Returns what a picture is called, and where it is read from."""
    if isinstance(value, (str, Path)) and str(value).strip():
        path = given_path(value, name)
        path = path if record.folder is None else record.folder / path
        return str(path), path
    called = f"of {record.where}"
    try:
        if isinstance(value, Image.Image):
            return called, to_rgb(value, (255, 255, 255))
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            with Image.open(io.BytesIO(value["bytes"])) as opened:
                return str(value.get("path") or called), to_rgb(opened, (255, 255, 255))
    except Exception as problem:  # a decoder raises anything on hostile bytes
        raise BadFile(f"{record.where}: the picture cannot be read: {problem}") from None
    raise BadFile(f"{record.where}: {name} must be the path of a picture, not {short(value)}")
