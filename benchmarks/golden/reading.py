"""What comes of every adapter file of a set on a fresh model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import studio
from benchmarks.golden.adapters import FORMATS, place_of
from benchmarks.golden.record import REFUSED, Record, file_digest
from benchmarks.golden.subjects import SUBJECTS, Subject
from studio import peft


def read_set(old: Path, out: Path) -> None:
    """Reads every adapter file of a set; the records go into ``out/read``."""
    with inside(old):
        for path in adapter_files(Path()):
            record = Record(out / "read" / path)
            read(record, SUBJECTS[path.parts[1]], path)
            record.write()


def adapter_files(folder: Path) -> Iterator[Path]:
    """Yields the adapter files of a set, as paths in it."""
    for place in sorted(folder.glob("*/*/*/*")):
        path = place.relative_to(folder)
        if path.parts[1] not in SUBJECTS or path.parts[0] == "read" or path.stem == "outputs":
            continue
        if place.suffix == ".safetensors" or (place / "adapter_config.json").is_file():
            yield path


def read(record: Record, subject: Subject, path: Path) -> None:
    """Loads an adapter file on a fresh model; keeps the output, and what saving it again gives."""
    model = subject.make()
    report = record.attempt("load", studio.load, model, path)
    if report is not REFUSED:
        record.say("loaded", report)
        record.attempt_output("output", subject.output, model)
        format = report.format if report.format in FORMATS else None
        with tempfile.TemporaryDirectory() as folder:
            place = place_of(Path(folder), format)
            record.attempt("save", studio.save, model, place, name=report.name, format=format)
            record.say("saved again", file_digest(place) if place.exists() else "")
    if path.parts[0] == "peft":
        model = record.attempt("from_pretrained", peft.PeftModel.from_pretrained, subject.make(), path)
        if model is not REFUSED:
            record.attempt_output("output under PEFT's name", subject.output, model)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
