"""Numbered pictures in a folder: where the next ones go, and what is refused before they are drawn."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import BadConfig, BadFile, Taken
from studio.limits import limit, too_many
from studio.temporary import remove

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_numbers", "places", "save_next"]

DIGITS = 4  # of a picture's number, at least


def check_numbers(steps: int, guidance: float | None, resolution: tuple[int, int] | None, batch_size: int) -> None:
    """Refuses what no base can do, before one is opened.

    Args:
        steps: denoising steps.
        guidance: guidance scale; None: the base's own.
        resolution: width and height in pixels; None: the base's own.
        batch_size: pictures that are computed together.

    Raises:
        BadConfig: a number that is impossible or over its limit.
    """
    if not 1 <= steps <= limit("steps"):
        raise BadConfig(f"--steps {steps}: give 1 or more, and {too_many('steps')}")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise BadConfig(f"--guidance {guidance}: give a finite number from 0 on (1: the prompt alone)")
    if resolution is not None and max(resolution) > limit("side"):
        raise BadConfig(f"--resolution {resolution[0]}x{resolution[1]}: {too_many('side')}")
    if not 1 <= batch_size <= limit("rows"):
        raise BadConfig(f"--batch-size {batch_size}: give 1 or more, and {too_many('rows')}")


def places(folder: Path, count: int, grid: Path | None, *, overwrite: bool, suffix: str = ".png") -> list[Path]:
    """Returns the files for pictures, after a check that they and the sheet can be written.

    Args:
        folder: where the pictures go.
        count: how many.
        grid: the sheet's file, if there shall be one.
        overwrite: begin at 0000, over the pictures and the sheet that are there.
        suffix: what the pictures' names end in, a format's.

    Raises:
        BadFile: one cannot be written, or would be written over and must not be.
    """
    files = _files(folder, count, suffix, overwrite=overwrite)
    for file in [*files[:1], *([grid] if grid else [])]:
        _check_place(file)
    if grid and os.path.lexists(grid) and not overwrite:  # a link that leads nowhere is there too
        raise BadFile(f"{grid} is there already: choose another name, or --overwrite")
    return files


def save_next(picture: Image, file: Path, *, overwrite: bool) -> Path:
    """Writes a picture; where another command has written its number meanwhile, under the next that is free.

    Args:
        picture: the picture.
        file: where it was to go, of :func:`places`.
        overwrite: write over what is there.

    Returns:
        The file.

    Raises:
        BadFile: nothing can be written there.
    """
    from studio.pipelines import save_picture

    while True:
        try:
            return save_picture(picture, file, fresh=not overwrite)
        except Taken:
            file = file.with_stem(f"{int(file.stem) + 1:0{len(file.stem)}d}")


def _files(folder: Path, count: int, suffix: str, *, overwrite: bool) -> list[Path]:
    """Returns the pictures' files: behind those that are there, or over those that the studio made.

    Raises:
        BadFile: a file that would be written over was not made by the studio.
    """
    from studio.pipelines import read_metadata
    from studio.pipelines.metadata import ENDINGS

    pictures = [file for kind in ENDINGS for file in folder.glob(f"*{kind}")]
    there = [int(file.stem) for file in pictures if re.fullmatch(r"[0-9]{1,18}", file.stem)]
    first = 0 if overwrite else max(there, default=-1) + 1
    digits = max(DIGITS, len(str(first + count - 1)))
    files = [folder / f"{number:0{digits}d}{suffix}" for number in range(first, first + count)]
    for file in files if there else ():
        if file.exists():
            try:
                read_metadata(file)
            except BadFile:
                raise BadFile(f"{file} is there already and was not made here: choose another folder with -o") from None
    return files


def _check_place(file: Path) -> None:
    """Checks, before anything is computed, that ``file`` can be written; folders that were made for it are removed.

    Raises:
        BadFile: it cannot.
    """
    from studio.atomic import atomic_write

    made = [place for place in file.parents if not place.exists()]
    probe = file.parent / ".room"
    if file.is_dir():
        raise BadFile(f"cannot write {file}: that is a folder; name a file")
    try:
        atomic_write(probe, "")
    except BadFile as error:
        raise BadFile(str(error).replace(str(probe), str(file.parent))) from None
    finally:
        remove(probe)
        for place in made:
            with contextlib.suppress(OSError):  # it holds something by now, or was never made
                place.rmdir()
