"""Pictures that are there under another name: a line that was inserted, or another pattern, draws nothing again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from studio.atomic import sentences
from studio.pipelines.rendering.bench import Asked
from studio.pipelines.rendering.finished import job_in
from studio.pipelines.rendering.keeping import Keeper

__all__ = ["copied"]

HELD: Final = "held."  # how the folder begins in which pictures are held meanwhile


def copied(jobs: Sequence[Asked], keeper: Keeper, hidden: Path) -> list[Asked]:
    """Writes the pictures of jobs that the folder has under another name, and returns the other jobs.

    Args:
        jobs: what is not done, each with its hash. keeper: keeps them.
        hidden: where they are held, since one may stand where another goes.

    Raises:
        BadFile: one cannot be written.
    """
    known = keeper.manifest.pictures()
    if not any(digest in known for _, digest in jobs):
        return list(jobs)
    with sentences(hidden / HELD), tempfile.TemporaryDirectory(dir=hidden, prefix=HELD) as place:
        held = {digest: Path(place, digest) for _, digest in jobs if digest in known}
        ending = Path(keeper.files[jobs[0][0].index]).suffix
        for digest, copy in held.items():
            _hold([keeper.folder / file for file in known[digest] if Path(file).suffix == ending], copy, digest)
        left = []
        for asked in jobs:
            there = held.get(asked[1])
            if there is None or not there.exists():
                left.append(asked)
            else:
                keeper.copy(asked, there.read_bytes())
    return left


def _hold(sources: Sequence[Path], copy: Path, digest: str) -> None:
    """Gives the first picture that a job made a second name, which stays when another takes its place."""
    for source in sources:
        with contextlib.suppress(OSError):
            if job_in(source) != digest:
                continue
            try:
                os.link(source, copy)
            except OSError:  # a file system without second names
                shutil.copyfile(source, copy)
            if job_in(copy) == digest:
                return
            copy.unlink()
