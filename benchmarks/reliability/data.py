"""Attack: data sets: folders of pictures and captions, files of texts, files of settings, in every state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy

from benchmarks.reliability import _folders, _samples, _settings
from benchmarks.reliability._folders import LINKS, REFUSED, Content, looked_at
from benchmarks.reliability._pictures import Odd, broken, odd, plain
from benchmarks.reliability._terminal import HOSTILE
from benchmarks.reliability._written import (
    CAPTIONS,
    NAMES,
    RIGHT_LINES,
    TIMES,
    TOLD,
    UNREADABLE,
    WORDS,
    WRONG_LINES,
)
from benchmarks.reliability.trial import Trial, attempt
from studio.datasets.folder import scan_folder
from studio.datasets.picture import open_image

__all__ = ["TITLE", "trials"]

TITLE: Final = "data sets and settings"
Made = Iterator[tuple[str, Callable[[Path], str]]]


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Makes the data sets one by one and reads them.

    Args:
        folder: where they are made. long: all of them, and whole trainings; else each seventh.
    """
    number = 0
    for group in (*READ, *((_samples.trained, _settings.trained) if long else ())):
        for name, action in group():
            number += 1
            if long or number % 7 == 0:
                yield attempt(f"{group.__name__}: {name}", partial(action, folder / f"{number:04}"))


def pictures() -> Made:
    """Odd pictures beside a plain one: what is seen is what a viewer shows, and what is none is named."""
    for one in odd():
        yield one.name, partial(_seen, one)
    for one in broken():
        yield one.name, partial(looked_at, {"a.png": plain(), f"b{one.suffix}": one.data}, {"a.png": None})


def _seen(one: Odd, place: Path) -> str:
    name = f"b{one.suffix}"
    fault = looked_at({"a.png": plain(), name: one.data}, {"a.png": None, name: None}, place)
    if fault:
        return fault
    image = open_image(place / name)
    mean = numpy.asarray(image, dtype=numpy.float64).mean(axis=(0, 1))
    if image.size != one.size:
        return f"it is {image.size}, not {one.size}"
    return "" if numpy.abs(mean - one.colour).max() < 4 else f"it is {mean.round(1).tolist()}, not {one.colour}"


def captions() -> Made:
    """Captions beside a picture in every encoding, and what is called like one."""
    for suffix in (".txt", ".caption", ".TXT", ".png.txt", ".png.caption"):
        for name, data in CAPTIONS.items():
            if suffix == ".txt" or name == "utf-8":
                yield f"{suffix}, {name}", partial(looked_at, {"a.png": plain(), f"a{suffix}": data}, {"a.png": WORDS})
    for name, data in UNREADABLE.items():
        yield f"refused: {name}", partial(looked_at, {"a.png": plain(), "a.txt": data}, REFUSED)
    for suffix in (".txt", ".caption"):
        for kind, make in {**LINKS, "folder": Path.mkdir}.items():
            wanted = {"a.png": None} if kind == "folder" else REFUSED
            yield f"{suffix} is a {kind}", partial(looked_at, {"a.png": plain(), f"a{suffix}": make}, wanted)
    latin: dict[str, Content] = {"a.png": plain(), "a.txt": WORDS.encode("cp1252")}
    yield "windows-1252 that is asked for", partial(looked_at, latin, {"a.png": WORDS}, encoding="windows-1252")
    hole: dict[str, Content] = {"a.png": plain(), "a.txt": b"a \x81 dog"}
    yield "windows-1252 with a hole", partial(looked_at, hole, REFUSED, encoding="windows-1252")
    yield "a terminal's", partial(looked_at, {"a.png": plain(), "a.txt": f"dog {TOLD} x".encode()}, None)


def tables() -> Made:
    """Lines of metadata.jsonl: right, wrong and in between, and tables that are not read."""

    def beside(text: bytes, name: str = "metadata.jsonl") -> dict[str, Content]:
        return {"a.png": plain(), name: text}

    for name, text, wanted in RIGHT_LINES:
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            yield f"{name}, {encoding}", partial(looked_at, beside(text.encode(encoding)), {"a.png": wanted})
    for text in WRONG_LINES:
        yield f"refused: {text[:50]!a}", partial(looked_at, beside(text.encode()), REFUSED)
    for name in ("nobody.png", "../a.png", "/etc/passwd", "", ".", "a.png/", HOSTILE, "A.PNG", "a" * 5000):
        line = json.dumps({"file_name": name, "text": "x"}).encode()
        yield f"of {name[:20]!a}", partial(looked_at, beside(line), {"a.png": "x" if name == "a.png/" else None})
    twice = b'{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}'
    yield "two lines of one picture", partial(looked_at, beside(twice), {"a.png": "x"})
    for name in ("metadata.csv", "captions.json", "metadata.parquet", "Metadata.jsonl", "a.json", "a.xlsx", "a.md"):
        yield f"{name} is named", partial(looked_at, beside(b"file_name,text\na.png,x\n", name), {"a.png": None})
    for kind, make in LINKS.items():
        yield f"metadata.jsonl is a {kind}", partial(looked_at, {"a.png": plain(), "metadata.jsonl": make}, REFUSED)


def names() -> Made:
    """Names of files that a terminal, a caption or a hash could stumble over."""
    for stem in NAMES:
        files: dict[str, Content] = {f"{stem}.png": plain(), f"{stem}.txt": b"dog"}
        wanted = None if stem.startswith(".") else {f"{stem}.png": "dog"}
        yield f"{stem[:20]!a}", partial(looked_at, files, wanted)
        yield f"{stem[:20]!a} that is none", partial(looked_at, {f"{stem}.png": b"x", f"{stem}/a.png": plain()}, None)


def repeats() -> Made:
    """Folders named like ``10_sks dog``, and such that only look so."""
    for name, times in TIMES:
        yield f"{name!a}", partial(_repeated, name, times)
    for name in ("10001_dog", "20240512_beach", "9" * 30 + "_dog", "9" * 200 + "_dog", "5_caf\udce9"):
        yield f"refused: {name[:20]!a}", partial(looked_at, {f"{name}/a.png": plain()}, REFUSED)
    for name in (f"5_{TOLD}", "5_[red]x", "5_<dog:0.8>", "5_ "):
        yield f"words {name[:20]!a}", partial(looked_at, {f"{name}/a.png": plain()}, None)


def _repeated(name: str, times: int | None, place: Path) -> str:
    fault = looked_at({f"{name}/a.png": plain(), "b.png": plain()}, None, place)
    found = {item.file.name: item.repeats for item in scan_folder(place)}
    wanted = {"b.png": 1} if times == 0 else {"a.png": times or 1, "b.png": 1}
    return fault or ("" if found == wanted else f"it counts {found}, not {wanted}")


READ: Final = (pictures, captions, tables, _folders.places, names, repeats, _samples.texts, _settings.files)
