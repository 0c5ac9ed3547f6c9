"""What the report shows of a run's previews: the first beside the last, and some over time."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from studio.trainers.loop.preview import preview_files

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Shown", "as_url", "show_previews"]

LARGEST: Final = 320  # pixels; larger previews are embedded smaller, the files beside the report have them whole
SMALL: Final = 200  # pixels; smaller ones are enlarged without blur, for a browser's own scaling shows squares or fog
MOST_STEPS: Final = 7  # of previews over time, that fit on a page


@dataclass(frozen=True)
class Shown:
    """The previews on the page.

    Args:
        captions: of each preview.
        first, last: the steps that are compared; equal where there is nothing to compare.
        pairs: caption, the preview at the first step, the one at the last.
        steps: those that are shown over time.
        over_time: caption, the preview at each of these steps.
        texts: whether previews are texts and not pictures.
        problems: sentences about previews that are left out.
    """

    captions: Sequence[str]
    first: int = 0
    last: int = 0
    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    over_time: list[tuple[str, list[str]]] = field(default_factory=list)
    texts: bool = False
    problems: list[str] = field(default_factory=list)


def show_previews(folder: Path, captions: Sequence[str]) -> Shown:
    """Returns what the page shows of the previews in a run's folder.

    Args:
        folder: the run's folder.
        captions: of each preview of a step; a step with more or fewer, or with one that cannot be read, is left out.
    """
    made: dict[int, list[str]] = {}
    problems, texts = [], False
    for step, files in preview_files(folder).items():
        read = [_shown(file) for file in files]
        whole = [one for one in read if one is not None]
        if len(whole) == len(read) == len(captions):
            made[step], texts = whole, texts or files[0].suffix == ".txt"
        else:
            problems.append(f"the previews of step {step} are damaged, or of other prompts, and are not shown")
    steps = sorted(made)
    if not steps:
        return Shown(captions, problems=problems)
    first, last = steps[0], steps[-1]
    pairs = list(zip(captions, made[first], made[last], strict=True)) if len(steps) > 1 else []
    some = _spread(steps, MOST_STEPS) if len(steps) > 2 else []
    over_time = [(caption, [made[step][place] for step in some]) for place, caption in enumerate(captions)]
    return Shown(captions, first, last, pairs, some, over_time if some else [], texts, problems)


def as_url(picture: Picture) -> str:
    """Returns a data URL: small pictures enlarged by whole pixels and smoothed, large ones smaller."""
    from PIL import Image

    buffer, picture = io.BytesIO(), picture.convert("RGB")
    small = max(picture.size) < SMALL
    if small:
        times = -(-SMALL // max(picture.size))
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    elif max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST))
    picture.save(buffer, format="PNG" if small else "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shown(file: Path) -> str | None:
    """Returns a preview as the page shows it, a picture as a data URL and a text as it is; None if it is damaged."""
    if file.suffix == ".txt":
        return file.read_text(encoding="utf-8", errors="replace")
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as picture:
            return as_url(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most ``most`` of ``steps``, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]
