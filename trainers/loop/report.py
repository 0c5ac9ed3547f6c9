"""The report of a run: one HTML page with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from studio.atomic import atomic_write
from studio.trainers.loop.curve import curve, running_mean, smoothing
from studio.trainers.loop.preview import preview_files, read_measures
from studio.trainers.loop.run import RunFolder, sha256
from studio.trainers.loop.task import Lesson
from studio.trainers.loop.weights import Movement

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["write"]

LARGEST: Final = 320  # pixels; larger previews are embedded smaller, the files beside the report have them whole
MOST_STEPS: Final = 7  # of previews over time, and
MOST_EXAMPLES: Final = 12  # of training pictures, that fit on a page


def write(
    folder: RunFolder,
    lesson: Lesson,
    settings: Mapping[str, Any],
    losses: Sequence[float],
    moved: Mapping[str, Movement],
) -> None:
    """Writes ``report.html``.

    Args:
        folder: the run's folder, with the adapter and the previews in it.
        lesson: the lesson.
        settings: what ``run.toml`` says.
        losses: of each step.
        moved: component -> how far it went.
    """
    import jinja2

    inputs = dict(lesson.inputs)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    page = template.render(
        title=lesson.name,
        task=lesson.settings.get("task", "training"),
        method=lesson.adapter.method,
        base=inputs.get("base", ""),
        steps=lesson.plan.steps,
        loss=running_mean(losses, smoothing(len(losses)))[-1],
        numbers=sum(part.numbers for part in moved.values()),
        size=folder.adapter.stat().st_size,
        examples=[_as_url(picture) for picture in lesson.examples()[:MOST_EXAMPLES]],
        curve=curve(losses, "loss over steps"),
        measures=read_measures(folder.folder),
        moved=moved,
        notes=lesson.notes,
        settings={part: _flat(settings[part]) for part in ("task", "adapter", "training", "free")},
        hashes={**inputs, "adapter.safetensors": sha256(folder.adapter)},
        **_previews(folder.folder, lesson.captions()),
    )
    atomic_write(folder.report, page)


def _previews(folder: Path, captions: Sequence[str]) -> dict[str, Any]:
    """Returns what the page shows of the previews: the first beside the last, and some over time."""
    previews = preview_files(folder)
    steps = sorted(previews)
    pairs = []
    if len(steps) > 1:
        rows = zip(captions, previews[steps[0]], previews[steps[-1]], strict=False)
        pairs = [(caption, _shown(before), _shown(after)) for caption, before, after in rows]
    shown = _spread(steps, MOST_STEPS) if len(steps) > 2 else []
    return {
        "captions": captions,
        "pairs": pairs,
        "shown": shown,
        "over_time": [(caption, [_shown(previews[step][i]) for step in shown]) for i, caption in enumerate(captions)],
        "texts": any(file.suffix == ".txt" for files in previews.values() for file in files),
    }


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most ``most`` of ``steps``, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested settings as dotted names and texts."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            flat[prefix + key] = shown or "(none)"
    return flat


def _shown(file: Path) -> str:
    """Returns a preview as the page shows it: a picture as a data URL, a text as it is."""
    if file.suffix == ".txt":
        return file.read_text(encoding="utf-8")
    from PIL import Image

    with Image.open(file) as picture:
        return _as_url(picture)


def _as_url(picture: Picture) -> str:
    """Returns a data URL: small pictures as they are, large ones smaller."""
    buffer, small = io.BytesIO(), max(picture.size) <= LARGEST
    picture = picture.convert("RGB")
    if not small:
        picture.thumbnail((LARGEST, LARGEST))
    picture.save(buffer, format="PNG" if small else "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
