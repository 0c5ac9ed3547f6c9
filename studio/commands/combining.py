"""The two ways to combine files on the command line: on their base, and on the layers of a public model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.bases import pipeline_for
from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import StudioError, UsageError

if TYPE_CHECKING:
    from studio.adapters import CombineReport
    from studio.adapters.combination import Way

__all__ = ["Made", "Opening", "is_public", "off_base", "on_base"]


@dataclass(frozen=True)
class Made:
    """A combination that is not written yet.

    Attributes:
        report: what came of it. used: what the JSON output says about the files.
        save: writes it: ``(file, format=..., dtype=...) -> file``.
    """

    report: CombineReport
    used: list[dict[str, Any]]
    save: Callable[..., Path]


@dataclass(frozen=True)
class Opening:
    """How a base and its adapters are opened.

    Attributes:
        base: what was named. device, dtype, config_of: see :func:`~studio.commands.loading.open_pipeline`.
        allow_partial, pickled: see :func:`~studio.commands.loading.load_adapter`.
    """

    base: str
    device: str | None
    dtype: str | None
    config_of: str | None
    allow_partial: bool
    pickled: bool


def is_public(file: Path) -> bool:
    """Says whether all of a file fits a public model, whose base need not be there then."""
    from studio.files.loose import read_loose

    try:
        read_loose(file)
    except StudioError:  # said in full where its base is opened
        return False
    return True


def on_base(words: tuple[AdapterWord, ...], way: Way, opening: Opening, name: str, show: Show) -> Made:
    """Combines files on their base.

    Args:
        words: the files. way: how. opening: of the base and the files. name: of the new adapter. show: takes lines.

    Raises:
        UsageError: the base or a file is not there, or does not fit.
    """
    from studio.adapters.combine import combine
    from studio.files import save
    from studio.files.combine import lineage
    from studio.files.embedding import METHOD
    from studio.pipelines.naming import adapter_file, plain_name

    kind, opened_as = pipeline_for(opening.base, opening.config_of, words)
    pipe = open_pipeline(
        kind, opening.base, device=opening.device, dtype=opening.dtype, show=show, config_of=opening.config_of,
        as_kind=opened_as,
    )  # fmt: skip
    used = [
        load_adapter(pipe, word, show, allow_partial=opening.allow_partial, pickled=opening.pickled) for word in words
    ]
    read = next((entry["file"] for entry in used if entry["method"] == METHOD), None)
    if read is not None:
        raise UsageError(f"{read} holds learned words (textual inversion), which change no layer: leave it out")
    blend = {entry["name"]: pipe.adapters[entry["name"]].strength for entry in used}
    own = plain_name(name)
    own = f"{own}-combined" if own in pipe.adapters else own
    report = combine(pipe.carrier, blend, method=way.method, rank=way.rank, name=own, **way.told)
    files = {one: adapter_file(word.file) for one, word in zip(blend, words, strict=True)}
    parents = lineage(pipe.adapters[own].metadata, files)

    def write(file: Path, **options: Any) -> Path:
        return save(pipe.carrier, file, name=own, metadata=parents, **options)

    return Made(report, used, write)


def off_base(
    words: tuple[AdapterWord, ...], way: Way, family: str | None, pickled: bool, name: str, show: Show
) -> Made:
    """Combines files on the layers of the public model that they are for.

    Args:
        words: the files. way: how. family: what they are for; None: told by their keys.
        pickled: allow files that may hold more than tensors. name: of the new adapter. show: takes lines.

    Raises:
        UsageError: a file is not there, is for no public model, or needs the base's weights.
    """
    from studio.files.combine import Parent, combined
    from studio.pipelines.naming import adapter_file, plain_name

    parents = [Parent(adapter_file(word.file), word.strength, word.name, word.blocks) for word in words]
    made = combined(parents, way, name=plain_name(name), family=family, pickled=pickled)
    for note in made.notes:
        show.note(note)
    entries = zip(made.report.parents, words, strict=True)
    used = [{"name": one, "file": word.file, "strength": word.said} for one, word in entries]
    return Made(made.report, used, made.save)
