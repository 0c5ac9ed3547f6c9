"""Pictures that a command draws, one by one: each is written as soon as it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.numbered import save_next
from studio.commands.show import Show

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.pipelines import ImagePipeline, Wanted

__all__ = ["draw_to"]


def draw_to(
    pipe: ImagePipeline,
    wanted: Sequence[Wanted],
    files: Sequence[Path],
    show: Show,
    *,
    rows: int,
    overwrite: bool,
    keep: bool,
    preview_every: int | None = None,
) -> list[tuple[Path, Image | None]]:
    """Draws pictures into files; what has no effect is said as a note before the first.

    Args:
        pipe: draws them. wanted: the pictures. files: where they go, in that order. show: takes lines for the user.
        rows: pictures that are computed together. overwrite: write over what is there.
        keep: return the pictures too, for a sheet.
        preview_every: steps between previews, in a folder ``previews`` beside the pictures; None: there are none.

    Returns:
        The file of each picture, and the picture.
    """
    from studio.pipelines.remarks import Remark

    watch: dict[str, Any] = {}
    if preview_every is not None:
        watch = {"on_preview": _previews(files), "preview_every": preview_every}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Remark)
        coming = pipe.make(wanted, batch_size=rows, **watch)
    for remark in said:
        if issubclass(remark.category, Remark):
            show.note(str(remark.message))
        else:
            warnings.warn_explicit(remark.message, remark.category, remark.filename, remark.lineno)
    done: dict[int, tuple[Path, Image | None]] = {}
    with _progress(show, len(files)) as advance:
        for made in coming:
            place = save_next(made.image, files[made.index], overwrite=overwrite)
            done[made.index] = (place, made.image if keep else None)
            advance()
    return [done[index] for index in range(len(wanted))]


def _previews(files: Sequence[Path]) -> Callable[[int, int, Image], None]:
    """Writes ``previews/0003-01.png``: the first preview of picture 3."""
    from studio.pipelines import save_png

    counts = [0] * len(files)

    def write(done: int, total: int, image: Image) -> None:
        index = image.info["index"]
        counts[index] += 1
        file = files[index]
        save_png(image, file.parent / "previews" / f"{file.stem}-{counts[index]:02d}.png")

    return write


@contextmanager
def _progress(show: Show, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not show.talks or not console.is_terminal or total < 2:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda: bar.advance(task)
