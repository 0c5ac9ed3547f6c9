"""Previews: the same prompts and seeds at step 0, every N steps and at the end, through the one sampling path.

Beside them stands what was measured at these steps on what is held out, in ``previews/measures.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from studio.atomic import atomic_write
from studio.trainers.loop.task import Lesson

__all__ = ["preview_files", "read_measures", "save_previews"]


def save_previews(folder: Path, step: int, lesson: Lesson) -> list[Path]:
    """Makes the previews and writes them to ``previews/step-000100-00.png``, with metadata that regenerates them.

    Texts go to ``previews/step-000100-00.txt``.

    Args:
        folder: the run's folder.
        step: steps done.
        lesson: makes the pictures or texts, and measures, with the blend that is on.
    """
    from studio.pipelines import save_png

    files = []
    for index, made in enumerate(lesson.preview()):
        stem = folder / "previews" / f"step-{step:06d}-{index:02d}"
        if isinstance(made, str):
            files.append(stem.with_suffix(".txt"))
            atomic_write(files[-1], made)
        else:
            files.append(stem.with_suffix(".png"))
            save_png(made, files[-1])
    figures = lesson.measure()
    if figures:
        measured = {**read_measures(folder), step: dict(figures)}
        text = json.dumps({str(at): measured[at] for at in sorted(measured)}, indent=1)
        atomic_write(_measures(folder), text + "\n")
    return files


def preview_files(folder: Path) -> dict[int, list[Path]]:
    """Returns the previews that a run has, by step, in order."""
    found: dict[int, list[Path]] = {}
    for file in sorted((folder / "previews").glob("step-*-*")):
        if file.suffix in (".png", ".txt"):
            found.setdefault(int(file.stem.split("-")[1]), []).append(file)
    return found


def read_measures(folder: Path) -> dict[int, dict[str, float]]:
    """Returns what a run has measured on what is held out, by step; empty where it measures nothing."""
    file = _measures(folder)
    if not file.is_file():
        return {}
    return {int(step): figures for step, figures in json.loads(file.read_text(encoding="utf-8")).items()}


def _measures(folder: Path) -> Path:
    return folder / "previews" / "measures.json"
