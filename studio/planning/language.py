"""A language model without its weights, opened as a kind from its configs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.errors import BadFile
from studio.families.language.kinds import KINDS, Kind, usual_kind
from studio.families.language.shapes import LANGUAGE_SHAPES
from studio.families.quiet import quietly

__all__ = ["first_line", "folder_model", "public_model", "reader_of"]


def public_model(name: str, kind: str | None = None, labels: int = 0) -> tuple[nn.Module, Kind]:
    """Returns a public model on the meta device, and what it is opened as.

    Args:
        name: of :data:`studio.families.language.shapes.LANGUAGE_SHAPES`. kind: a name of
            :data:`studio.families.language.KINDS`; None: what it was published as. labels: that a head tells apart.

    Raises:
        DoesNotFit: transformers has no model of that kind.
    """
    shape = LANGUAGE_SHAPES[name]
    made: Any = shape.build()
    usual = usual_kind({"model_type": made.config.model_type, "architectures": [type(made).__name__]})
    if kind in (None, usual.name):
        return made, usual
    KINDS[kind].check_knows(made.config.model_type, name)
    return _made(KINDS[kind], made.config, labels), KINDS[kind]


def folder_model(folder: Path, kind: str | None = None, labels: int = 0) -> tuple[nn.Module, Kind]:
    """Returns the model of a transformers folder on the meta device, and what it is opened as.

    Args:
        folder: the folder. kind: a name of :data:`studio.families.language.KINDS`; None: what it was saved as. labels:
            that a head tells apart.

    Raises:
        BadFile: its config cannot be read.
        DoesNotFit: transformers has no model of that kind.
    """
    import transformers

    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, usual = str(said["model_type"]), _usual(said)
    except Exception as problem:
        raise BadFile(f"{folder} cannot be read as a language model's config: {first_line(problem)}") from problem
    opened = usual if kind is None else KINDS[kind]
    if kind is not None:
        opened.check_knows(model_type, str(folder))
    try:
        with quietly():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            return _made(opened, config, labels), opened
    except Exception as problem:  # whatever a broken config makes transformers raise
        raise BadFile(f"{folder} cannot be read as a language model's config: {first_line(problem)}") from problem


def reader_of(folder: Path) -> Any:
    """Returns what makes numbers of the pictures that a model of a folder reads.

    Raises:
        BadFile: there is none that can be opened.
    """
    import transformers

    try:
        with quietly():
            return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # whatever a broken or missing one makes transformers raise
        raise BadFile(f"{folder} has no processor that can be opened: {first_line(problem)}") from problem


def _usual(said: Mapping[str, Any]) -> Kind:
    """What a model was saved as; one that does not say it reads and writes in two parts where it can."""
    both = KINDS["seq2seq"]
    return both if not said.get("architectures") and both.knows(str(said["model_type"])) else usual_kind(said)


def _made(kind: Kind, config: Any, labels: int) -> nn.Module:
    import transformers

    if labels:
        config.num_labels = labels
    with quietly(), torch.device("meta"):
        return getattr(transformers, kind.auto).from_config(config)  # type: ignore[no-any-return]


def first_line(problem: Exception) -> str:
    """Returns the first line of what an error says."""
    text = str(problem).strip()
    return text.splitlines()[0][:300] if text else repr(problem)
