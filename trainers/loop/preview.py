"""Previews: the same prompts and seeds at step 0, every N steps and at the end, through the one sampling path.

Beside them stands what was measured at these steps on what is held out, in ``previews/measures.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from studio.atomic import atomic_write
from studio.config import finite
from studio.errors import BadFile
from studio.given import parse_json, read_given
from studio.trainers.loop.task import Lesson, Say

__all__ = ["preview_files", "read_measures", "save_previews"]

NAME: Final = re.compile(r"step-(\d{6,12})-(\d{2,6})\.(?:png|txt)")


def save_previews(folder: Path, step: int, lesson: Lesson, *, writes: bool = True) -> list[Path]:
    """Makes the previews and writes them to ``previews/step-000100-00.png``, with metadata that regenerates them.

    Texts go to ``previews/step-000100-00.txt``.

    Args:
        folder: the run's folder.
        step: steps done.
        lesson: makes the pictures or texts, and measures, with the blend that is on.
        writes: whether this process writes what it makes.
    """
    from studio.pipelines import save_png

    files, shown = [], lesson.preview()
    for index, made in enumerate(shown if writes else ()):
        stem = folder / "previews" / f"step-{step:06d}-{index:02d}"
        if isinstance(made, str):
            files.append(stem.with_suffix(".txt"))
            atomic_write(files[-1], made)
        else:
            files.append(stem.with_suffix(".png"))
            save_png(made, files[-1])
    figures = lesson.measure()
    if figures and writes:
        measured = {**read_measures(folder), step: dict(figures)}
        text = json.dumps({str(at): measured[at] for at in sorted(measured)}, indent=1)
        atomic_write(_measures(folder), text + "\n")
    return files


def preview_files(folder: Path) -> dict[int, list[Path]]:
    """Returns the previews that a run has, by step, in order; other files there are none of ours."""
    found: dict[int, list[Path]] = {}
    for file in sorted((folder / "previews").glob("step-*-*")):
        named = NAME.fullmatch(file.name)
        if named and file.is_file():
            found.setdefault(int(named[1]), []).append(file)
    return found


def read_measures(folder: Path, say: Say | None = None) -> dict[int, dict[str, float]]:
    """Returns what a run has measured on what is held out, by step; empty where it measures nothing.

    Args:
        folder: the run's folder.
        say: takes a sentence where a part of the file cannot be read.
    """
    file = _measures(folder)
    if not file.exists():
        return {}
    try:
        content = parse_json(read_given(file, "config-bytes"))
    except (OSError, ValueError, BadFile):
        content = None
    entries = content if isinstance(content, dict) else {}
    sound = {int(step): dict(entry) for step, entry in entries.items() if _sound(step, entry)}
    if say is not None and (not isinstance(content, dict) or len(sound) != len(entries)):
        say(f"{file} is damaged: of what was measured, that of {len(sound)} steps is left")
    return dict(sorted(sound.items()))


def _sound(step: str, entry: Any) -> bool:
    figures = isinstance(entry, Mapping) and bool(entry) and all(map(finite, entry.values()))
    return figures and step.isascii() and step.isdigit() and len(step) < 13


def _measures(folder: Path) -> Path:
    return folder / "previews" / "measures.json"
