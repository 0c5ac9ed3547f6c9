"""Previews: the same prompts and seeds at step 0, every N steps and at the end, through the one sampling path."""

from __future__ import annotations

from pathlib import Path

from studio.trainers.task import Lesson

__all__ = ["preview_files", "save_previews"]


def save_previews(folder: Path, step: int, lesson: Lesson) -> list[Path]:
    """Makes the previews and writes them to ``previews/step-000100-00.png``, with metadata that regenerates them.

    Args:
        folder: the run's folder.
        step: steps done.
        lesson: makes the pictures with the blend that is on.
    """
    from studio.pipelines import save_png

    files = []
    for index, picture in enumerate(lesson.preview()):
        files.append(folder / "previews" / f"step-{step:06d}-{index:02d}.png")
        save_png(picture, files[-1])
    return files


def preview_files(folder: Path) -> dict[int, list[Path]]:
    """Returns the previews that a run has, by step, in order."""
    found: dict[int, list[Path]] = {}
    for file in sorted((folder / "previews").glob("step-*-*.png")):
        found.setdefault(int(file.stem.split("-")[1]), []).append(file)
    return found
