"""convert: an adapter file in the format of another program, proven to mean the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter
from studio.adapters.combining.pairs import Pair, of_rank, stacked
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadConfig, BadFile, DoesNotFit, Refused
from studio.files.embedding import EMBEDDINGS, METHOD, Embedding
from studio.files.embedding_file import read_embeddings, save_embedding, words_of
from studio.files.format import FORMATS
from studio.files.hashes import file_hash
from studio.files.loose import Loose, read_loose, write_loose
from studio.files.names import Names
from studio.files.programs import PROGRAMS
from studio.files.source import tensor_file
from studio.given import given_path

__all__ = ["EXACT", "ConvertReport", "convert", "difference"]

EXACT = 1e-6
"""How far a change may be from what it was, as a part of it, before a conversion says so."""
WORDS_FOR: Final = {"a1111": "kohya", "comfyui": "kohya", "diffusers": "diffusers"}
"""Program -> the format in which it reads learned words."""


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        file: the new file. source: the old one's format. format: the new one's. method: of the adapter.
        base: the public model or base on whose layers it was read. sites: how many layers it has.
        error: ``‖ΔW' − ΔW‖ / ‖ΔW‖`` of all layers together, of what the new file says against the old one.
        notes: what is worth knowing about the reading.
    """

    file: Path
    source: str
    format: str
    method: str
    base: str
    sites: int
    error: float
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        exact = "exactly" if self.error == 0 else f"with an error of {self.error:.1e}"
        where = "encoders" if self.method == METHOD else "layers"
        what = f"{self.method} in {self.sites} {where} of {self.base}"
        return f"{self.file}: {what}, from {self.source} to {self.format} {exact}"


def convert(
    file: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    program: str | None = None,
    family: str | None = None,
    base: str | Any | None = None,
    dtype: torch.dtype | str | None = None,
    approximate: bool = False,
    pickled: bool = False,
) -> ConvertReport:
    """Writes an adapter file in another format, reads it back, and compares what both change.

    Args:
        file: the adapter file. out: the new one, which must not be there.
        format: of FORMATS: "diffusers", "kohya", "native", "peft", "gguf" or "mlx"; of learned words (textual
            inversion) one of :data:`EMBEDDINGS <studio.files.embedding.EMBEDDINGS>`.
        program: of PROGRAMS, instead of a format: "a1111", "comfyui", "diffusers" or "peft". What it would leave out or
            read as another change is refused.
        family: the family or public model that it is for; None: told by its keys.
        base: a base or model, where it is for none of the public ones.
        dtype: what the tensors are stored in; None: as they were.
        approximate: keep a file whose change is not that of the old one; the report says how far it is.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.

    Raises:
        BadFile: it cannot be read, or the new one is there already. DoesNotFit: it is for no base that is known, or the
            format cannot say what it is. PartialLoad: a part of it fits no layer.
        Refused: what was written means something else than what was read; nothing is left of it.
        UnknownName: no such format, or no such program. BadConfig: both of them, or none; a family or a base that is
            given twice, or given for learned words.
    """
    place = given_path(out)
    words = words_of(file, pickled=pickled)
    if words:
        _check_plain(family, base, dtype)
        return _convert_words(words, place, format, program)
    format, meant = _wanted(format, program)
    _check_new(place)
    loose = meant(read_loose(file, family=family, base=base, pickled=pickled))
    told = loose.noted("converted", file_hash(tensor_file(loose.file, pickled)))
    written = write_loose(told, place, format=format, dtype=dtype)
    try:
        error = difference(loose, read_loose(written, base=loose.model))
        if error > EXACT and not approximate:
            raise Refused(
                f"as {format}, {loose.file.name} would be {error:.1e} off in what it changes, through rounding: "
                "nothing is written; choose a wider dtype, or keep it as it comes out (approximate=True)"
            )
    except BaseException:
        remove_written(written)
        raise
    return ConvertReport(
        file=written, source=loose.format, format=format, method=loose.config.label, base=loose.base,
        sites=len(loose.layers), error=error, notes=loose.notes,
    )  # fmt: skip


def _check_plain(*asked: Any) -> None:
    if any(one is not None for one in asked):
        raise BadConfig("learned words keep the type of their vectors, whose widths tell the base: leave these out")


def _check_target(format: str | None, program: str | None) -> None:
    if (format is None) == (program is None):
        raise BadConfig("convert to what: give a format, or the program that shall read it")


def _check_new(place: Path) -> None:
    if place.exists():
        raise BadFile(f"{place} is there already; choose another name")


def _convert_words(words: Sequence[Embedding], place: Path, format: str | None, program: str | None) -> ConvertReport:
    """Writes learned words in another format, with the same bytes."""
    _check_target(format, program)
    if program is not None and program not in WORDS_FOR:
        raise DoesNotFit(f"{program} reads no learned words; these do: {', '.join(sorted(WORDS_FOR))}")
    chosen = EMBEDDINGS[WORDS_FOR[program] if program is not None else format or ""].name
    _check_new(place)
    save_embedding(words, place, format=chosen)
    try:
        if not _come_back(words, place):
            raise Refused(f"as {chosen}, {words[0].name!r} would not be read as it is: nothing is written")
    except BaseException:
        remove_written(place)
        raise
    return ConvertReport(
        file=place, source=words[0].format, format=chosen, method=METHOD, base=words[0].title,
        sites=sum(len(word.vectors) for word in words), error=0.0,
    )  # fmt: skip


def _come_back(words: Sequence[Embedding], place: Path) -> bool:
    try:
        again = read_embeddings(place, pickled=True)
    except BadFile:  # a word that the format takes for something else
        return False
    return len(again) == len(words) and all(map(_same_vectors, words, again))


def _same_vectors(one: Embedding, other: Embedding) -> bool:
    alone = len(one.vectors) == len(other.vectors) == 1  # then no label is needed
    named = one.vectors.keys() == other.vectors.keys()
    return (alone or named) and all(
        torch.equal(rows, next(iter(other.vectors.values())) if alone else other.vectors[label])
        for label, rows in one.vectors.items()
    )


def _wanted(format: str | None, program: str | None) -> tuple[str, Callable[[Loose], Loose]]:
    """The format, and what brings an adapter to what is read of it."""
    _check_target(format, program)
    if program is None:
        assert format is not None, "one of them is given"
        return FORMATS[format].name, lambda loose: loose
    return PROGRAMS[program].format, PROGRAMS[program].meant


def difference(one: Loose, other: Loose) -> float:
    """Returns ``‖ΔW' − ΔW‖ / ‖ΔW‖`` of two adapters for one base, all layers together.

    Factor pairs are compared as what they change, other methods tensor by tensor.

    Raises:
        DoesNotFit: they have other layers, or are of methods whose changes cannot be compared.
    """
    if one.layers.keys() != other.layers.keys():
        alone = sorted(one.layers.keys() ^ other.layers.keys())
        raise DoesNotFit(f"{len(alone)} layers are in one of the two files alone, {alone[0]} is one")
    lacking = whole = 0.0
    for path, site in _sites(one).items():
        first, second = (_adapter(loose, path, site) for loose in (one, other))
        if _same(first, second):
            whole += sum(map(_squares, one.layers[path].values()))
        elif first.fused and second.fused:
            pairs = [_pair(adapter) for adapter in (first, second)]
            lacking += of_rank(stacked(pairs, [1.0, -1.0]), 1)[2]
            whole += of_rank(pairs[0], 1)[2]
        else:
            apart, size = _tensors_apart(one, other, path, site)
            lacking, whole = lacking + apart, whole + size
    lacking += _shared_apart(one, other)
    return math.sqrt(lacking / whole) if whole else 0.0


def _sites(loose: Loose) -> dict[str, Any]:
    names, config = Names(loose.model), loose.config
    return {path: names.site(path, config.at(names.paths[path][1]).adapter.kinds) for path in loose.layers}


def _adapter(loose: Loose, path: str, site: Any) -> Adapter:
    config = loose.config.at(site.path)
    return config.adapter(site, config, loose.layers[path], trainable=False)


def _same(one: Adapter, other: Adapter) -> bool:
    """Whether two have the same tensors to the bit, and the same scale."""
    if one.config.method != other.config.method or one.tensors().keys() != other.tensors().keys():
        return False
    numbers = [
        adapter.config.scale_at(adapter.site.path) if isinstance(adapter.config, RankedConfig) else 1.0
        for adapter in (one, other)
    ]
    return numbers[0] == numbers[1] and all(map(torch.equal, one.tensors().values(), other.tensors().values()))


def _pair(adapter: Adapter) -> Pair:
    down, up, scale, _ = adapter.factors()
    return down.flatten(1).double() * scale, up.double()


def _tensors_apart(one: Loose, other: Loose, path: str, site: Any) -> tuple[float, float]:
    """How far the tensors of a layer are apart, and their size, both squared."""
    configs = [loose.config.at(site.path) for loose in (one, other)]
    if configs[0].method != configs[1].method:
        raise DoesNotFit(f"{configs[0].method} and {configs[1].method} at {path} cannot be compared without the base")
    shared = configs[0].adapter.peft.shared
    first, second = (
        {name: tensor for name, tensor in loose.layers[path].items() if name not in shared} for loose in (one, other)
    )
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (first, second)]
    if shapes[0] != shapes[1]:
        raise DoesNotFit(f"the tensors of {path} are {shapes[0]} in one file and {shapes[1]} in the other")
    scales = [config.scale_at(site.path) if isinstance(config, RankedConfig) else 1.0 for config in configs]
    apart = sum(_squares(first[name].double() - second[name].double()) for name in first)
    size = sum(_squares(tensor) for tensor in first.values())
    return apart + (0.0 if math.isclose(*scales, rel_tol=1e-9) else size * (scales[1] / scales[0] - 1) ** 2), size


def _shared_apart(one: Loose, other: Loose) -> float:
    """How far the tensors are apart that all layers of a component share and the first of them holds, squared."""
    names = [name for member in one.config.members for name in member.adapter.peft.shared]
    held = [
        [tensors[name] for _, tensors in sorted(loose.layers.items()) for name in names if name in tensors]
        for loose in (one, other)
    ]
    if [tensor.shape for tensor in held[0]] != [tensor.shape for tensor in held[1]]:
        raise DoesNotFit("the tensors that all layers share have other shapes in the two files")
    return sum(_squares(first.double() - second.double()) for first, second in zip(*held, strict=True))


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def remove_written(place: Path) -> None:
    """Takes away what was written and is not to be kept.

    Args:
        place: the new file, or the new folder.
    """
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
