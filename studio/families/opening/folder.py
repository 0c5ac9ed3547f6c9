"""Reading a diffusers folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studio.errors import BadFile, DoesNotFit
from studio.families.family import FAMILIES, Family
from studio.families.opening.dtype import by_component, usual_dtype
from studio.families.opening.selection import INDEX, has_weights, parts_of, pipeline_files, read_index, variant_of
from studio.families.opening.weights import Weights, header_of, held
from studio.families.quiet import quietly
from studio.given import check_regular, read_given

__all__ = ["chosen", "class_of", "index_of", "load_pipeline", "load_part", "read_folder", "reading", "weights_of"]


def read_folder(folder: Path, dtype: torch.dtype | str | None, device: torch.device) -> tuple[Any, Weights]:
    """Reads a pipeline, and says which files its weights are in.

    Args:
        folder: a diffusers folder. dtype: see :func:`~studio.families.opening.dtype.usual_dtype`. device: where to.

    Raises:
        BadFile: it is not a whole diffusers pipeline.
        DoesNotFit: the pipeline is of no family that the studio knows.
    """
    index = index_of(folder)
    family, cls = class_of(folder, index)
    needed = chosen(folder, partial(pipeline_files, half=dtype is torch.float16))
    weights = weights_of(folder, index, needed)
    try:
        counts = held(header_of(file) for files in weights.values() for file in files)
    except BadFile as problem:
        raise BadFile(f"{folder} cannot be opened as a {cls.__name__}: {problem}") from None
    pipe = load_pipeline(folder, cls, by_component(usual_dtype(counts, device, dtype), family.dtypes), needed)
    return pipe, weights


def index_of(folder: Path) -> dict[str, Any]:
    """Reads the index of a diffusers folder.

    Raises:
        BadFile: it has none, or one that cannot be read, or holds what is no regular file.
    """
    file = folder / INDEX
    if not file.is_file():
        found = sorted(entry.name for entry in folder.iterdir())
        some = ", ".join([*found[:5], *([f"and {len(found) - 5} more"] if len(found) > 5 else [])]) or "nothing"
        raise BadFile(f"{folder} is no diffusers pipeline: it has no {INDEX} (it holds {some})")
    try:
        for one in (file, *folder.glob("*/*")):
            if not one.is_dir():
                check_regular(one)
        return read_index(read_given(file, "config-bytes"))
    except (OSError, BadFile) as problem:
        raise BadFile(f"{folder} cannot be read as a diffusers folder ({problem!s:.200}); copy it again") from None


def class_of(folder: Path, index: Mapping[str, Any]) -> tuple[Family, Any]:
    """Returns the family and the diffusers class of the pipeline that an index describes.

    Raises:
        DoesNotFit: the studio opens none of that name.
    """
    import diffusers

    name = str(index["_class_name"])
    family = next((family for family in FAMILIES.values() if name in family.pipelines), None)
    if family is None:
        opened = ", ".join(sorted({pipeline for family in FAMILIES.values() for pipeline in family.pipelines}))
        raise DoesNotFit(f"{folder} is a {name[:100]}, which the studio does not know; it opens {opened}")
    with quietly():
        cls = getattr(diffusers, name, None)
    if cls is None:
        raise DoesNotFit(f"{folder} wants the class {name!r}, which diffusers {diffusers.__version__} does not have")
    return family, cls


def chosen(folder: Path, select: Callable[..., list[str]]) -> list[str]:
    """Returns the files of a folder that a selection takes, by their names in it.

    Raises:
        BadFile: it refuses the folder.
    """
    files = [file.relative_to(folder).as_posix() for file in (*folder.glob("*"), *folder.glob("*/*")) if file.is_file()]
    try:
        return select(files, lambda name: read_given(folder / name, "config-bytes"))
    except BadFile as problem:
        raise BadFile(f"{folder} {problem}") from None


def weights_of(folder: Path, index: Mapping[str, Any], needed: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """Returns the files among ``needed`` that hold weights, by component."""
    found = {
        part: tuple(folder / name for name in needed if name.startswith(f"{part}/") and name.endswith(".safetensors"))
        for part in parts_of(dict(index))
    }
    return {part: files for part, files in found.items() if files}


def load_pipeline(
    folder: Path, cls: Any, dtypes: Mapping[str, torch.dtype], needed: Collection[str], **given: Any
) -> Any:
    """Reads a pipeline of a class; the tensors are mapped, not copied, where their type stays.

    Args:
        folder: a diffusers folder. cls: the class.
        dtypes: component -> type; ``"default"`` for the others.
        needed: the files that are read. given: components that are there already.

    Raises:
        BadFile: diffusers cannot read it.
    """
    with reading(f"{folder} cannot be opened as a {cls.__name__}"):
        return cls.from_pretrained(
            folder, dtype=dict(dtypes), variant=variant_of(needed), local_files_only=True, use_safetensors=True, **given
        )


def load_part(folder: Path, index: Mapping[str, Any], part: str, dtype: torch.dtype, needed: Collection[str]) -> Any:
    """Reads one component of a folder, as :func:`load_pipeline` does.

    Raises:
        BadFile: it cannot be read.
        DoesNotFit: its class is of another library than diffusers or transformers.
    """
    library, name = parts_of(dict(index))[part]
    if library not in ("diffusers", "transformers"):
        raise DoesNotFit(
            f"{folder / part} wants the class {name!r} of {library!r}, and only diffusers' and transformers' are read"
        )
    with reading(f"{folder / part} cannot be opened as a {name}"):
        cls = getattr(importlib.import_module(library), name)
        variant = variant_of([file for file in needed if file.startswith(f"{part}/")])
        kind: dict[str, Any] = (
            {"dtype": dtype, "variant": variant, "use_safetensors": True} if has_weights(name) else {}
        )
        return cls.from_pretrained(folder / part, local_files_only=True, **kind)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Makes one sentence of whatever diffusers and transformers raise about files that they cannot read.

    Args:
        what: the beginning of the sentence.

    Raises:
        BadFile: something was raised.
    """
    try:
        with quietly():
            yield
    except (MemoryError, BadFile):
        raise
    except Exception as problem:  # of safetensors, json, the system: whatever a broken folder makes them raise
        text = str(problem).strip()
        raise BadFile(f"{what}: {text.splitlines()[0] if text else repr(problem)}") from problem
