"""The report of a run: one HTML page with everything in it."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from studio.atomic import atomic_write
from studio.trainers.loop.curve import curve
from studio.trainers.loop.losses import final_loss, loss_name
from studio.trainers.loop.peak import Taken
from studio.trainers.loop.preview import read_measures
from studio.trainers.loop.run import RunFolder, sha256
from studio.trainers.loop.shown import as_url, show_previews
from studio.trainers.loop.task import Lesson
from studio.trainers.loop.weights import Movement

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["write"]

MOST_EXAMPLES: Final = 12  # of training pictures, that fit on a page


def write(
    folder: RunFolder,
    lesson: Lesson,
    settings: Mapping[str, Any],
    losses: Sequence[float],
    moved: Mapping[str, Movement],
    held: Taken,
    remarks: Sequence[str] = (),
) -> None:
    """Writes ``report.html``.

    Args:
        folder: the run's folder, with the adapter and the previews in it.
        lesson: the lesson.
        settings: what ``run.toml`` says.
        losses: of each step; NaN where the log has lost it.
        moved: component -> how far it went.
        held: the memory that it has taken.
        remarks: what happened to the run's own files.
    """
    import jinja2

    problems: list[str] = []
    inputs, measures = dict(lesson.inputs), read_measures(folder.folder, problems.append)
    previews = show_previews(folder.folder, lesson.captions())
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    page = template.render(
        title=lesson.name,
        task=lesson.settings.get("task", "training"),
        method=lesson.adapter.method,
        base=inputs.get("base", ""),
        steps=lesson.plan.steps,
        loss=final_loss(losses),
        loss_name=loss_name(len(losses)),
        numbers=sum(part.numbers for part in moved.values()),
        size=folder.adapter.stat().st_size,
        use=shlex.join(lesson.use(folder.adapter)),
        examples=[(name, as_url(picture)) for name, picture in lesson.examples()[:MOST_EXAMPLES]],
        curve=curve(losses, "loss over steps"),
        measures=measures,
        held=held,
        plan=_url(held.picture()) if held.forecast else "",
        moved=moved,
        notes=[*lesson.notes, *remarks, *previews.problems, *problems],
        settings={part: _flat(settings[part]) for part in ("task", "adapter", "training", "free")},
        hashes={**inputs, folder.adapter.name: sha256(folder.adapter)},
        previews=previews,
    )
    atomic_write(folder.report, page)


def _url(picture: Image) -> str:
    """Returns a drawing as a data URL, with all its points."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
