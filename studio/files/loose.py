"""Adapters off any model: what a file holds, read on the names and sizes of the base that it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.adapters import Adapter, AdapterConfig
from studio.device import on_cpu
from studio.errors import BadConfig, DoesNotFit, PartialLoad, StudioError, nearest
from studio.families import BASES, FAMILIES
from studio.families.called import model_called
from studio.families.language import LANGUAGE_BASES
from studio.families.shapes import SHAPES, outline
from studio.files.alphas import FORM, alpha_form, in_form
from studio.files.components import heading, meant_by
from studio.files.detect import Contents, guess_family, sort_keys
from studio.files.embedding_file import words_in
from studio.files.format import FORMATS, Source
from studio.files.header import payload_hash
from studio.files.load import drop_misfits, judge, read_source
from studio.files.metadata import facts_of, families_named, own_entry, write_metadata
from studio.files.names import Names
from studio.files.save import check_ending, spelled_layers, stored_dtype
from studio.files.soft import soft_method
from studio.files.source import open_source
from studio.given import given_path

__all__ = ["Loose", "adapters_of", "read_loose", "write_loose"]


@dataclass(frozen=True, kw_only=True)
class Loose:
    """An adapter, and what it is for.

    Attributes:
        file: where it came from. model: the base, or its outline. base: what that is called.
        name: of the adapter. format: of the file. config: the method and its settings.
        layers: path -> tensor name -> tensor, fp32 on the CPU. facts: what the file says about it.
        notes: what is worth knowing about the reading.
    """

    file: Path
    model: Any
    base: str
    name: str
    format: str
    config: AdapterConfig
    layers: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def noted(self, name: str, fact: str) -> Loose:
        """Returns the same adapter with one more fact."""
        return dataclasses.replace(self, facts={**self.facts, name: fact})

    def changed(self, config: AdapterConfig, layers: Mapping[str, Mapping[str, Tensor]]) -> Loose:
        """Returns another adapter for the same base, with the same facts but those about its file's type."""
        facts = {name: fact for name, fact in self.facts.items() if name != "dtype"}
        return dataclasses.replace(self, config=config, layers=layers, facts=facts)


def adapters_of(loose: Loose, names: Names) -> dict[str, Adapter]:
    """Returns path -> the adapter of its layer, those that share tensors connected.

    Args:
        loose: what a file holds. names: those of its model.

    Raises:
        DoesNotFit: a tensor that they share is missing.
    """
    found: dict[str, Adapter] = {}
    together: dict[tuple[str, str], dict[str, Adapter]] = {}
    for path, tensors in loose.layers.items():
        component, own = names.paths[path]
        config = loose.config.at(own)
        found[path] = config.adapter(names.site(path, config.adapter.kinds), config, tensors, trainable=False)
        together.setdefault((component, config.method), {})[own] = found[path]
    for adapters in together.values():
        next(iter(adapters.values())).link(adapters)
    return found


def read_loose(
    file: str | Path, *, family: str | None = None, base: str | Any | None = None, pickled: bool = False
) -> Loose:
    """Reads an adapter file without a model.

    Args:
        file: as :func:`studio.load` takes it.
        family: a family, or a public model of SHAPES, that it is for; None: told by its keys.
        base: a base, as :func:`~studio.families.called.model_called` takes it, or a model, where it is for none of the
            public ones.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.

    Raises:
        BadFile: it cannot be read, or is of no known format. DoesNotFit: it is for no base that is known.
        PartialLoad: a part of it fits no layer. Refused: NaN, or numbers that nothing can be computed with.
        BadConfig: an unknown family, or a base beside one.
    """
    if family is not None and base is not None:
        raise BadConfig(f"family={family!r} and a base are given, and the base tells its family: leave one of them out")
    with on_cpu():
        source = open_source(given_path(file), pickled=pickled)
        own, facts = own_entry(source.metadata), facts_of(source.metadata)
        if words_in(source) is not None:
            raise DoesNotFit(
                f"{source.file} holds learned words (textual inversion), which change no layer: there is nothing to "
                "combine, to resize or to measure in it"
            )
        if soft_method(source, own):
            raise DoesNotFit(
                f"{source.file} holds virtual tokens of a language model, which have one form in all files"
            )
        if base is not None or facts.get("base") in (*BASES, *LANGUAGE_BASES):
            model = base if base is not None and not isinstance(base, (str, Path)) else None
            called = facts["base"] if base is None else str(base) if model is None else type(base).__name__
            return _read(source, model_called(called) if model is None else model, called)
        return _on_a_shape(source, family)


def write_loose(
    loose: Loose, file: str | Path, *, format: str | None = None, dtype: torch.dtype | str | None = None
) -> Path:
    """Writes an adapter, as :func:`studio.save` does one that is on a model.

    Args:
        loose: the adapter. file: where to. format: of FORMATS; None: that which it had. dtype: see there.

    Raises:
        UnknownName: no such format. DoesNotFit: the format cannot say what this adapter is. BadConfig: an impossible
            dtype. BadFile: nothing can be written there.
    """
    chosen, facts = FORMATS[format or loose.format], dict(loose.facts)
    check_ending(given_path(file), chosen)
    stored = stored_dtype(dtype, facts, False)
    with on_cpu():
        draft, tensors = spelled_layers(loose.model, loose.config, loose.layers, chosen, stored)
    tensors, place = in_form(tensors, facts.pop(FORM, "")), given_path(file)
    text = write_metadata(
        draft.config, facts, name=loose.name, parts=draft.names.modules, payload=payload_hash(tensors)
    )  # fmt: skip
    chosen.write(place, tensors, text, draft)
    return place


def _on_a_shape(source: Source, family: str | None) -> Loose:
    """On the first public model that all of it fits."""
    found = sort_keys(source.infos)
    title, told = "", family is None
    if family is None:
        stated = families_named(source.metadata)
        family, title = guess_family(found, source.infos, stated)
        family = family or next((one for one in stated if one in FAMILIES), "")  # a few layers have no mark
    names = _shapes(family, source.file, title)
    first: StudioError | None = None
    for name in names:
        try:
            return _read(source, outline(name, _components(found, SHAPES[name].family)), name)
        except StudioError as error:
            first = first or error
    assert first is not None, "there is a shape"
    if told and isinstance(first, (DoesNotFit, PartialLoad)):
        hint = "where it is for a model of other sizes, name its base (base=..., --base BASE)"
        raise type(first)(f"{first}; {hint}") from None
    raise first


def _shapes(family: str, file: Path, title: str) -> list[str]:
    if family in SHAPES:
        return [family]
    names = [name for name, shape in SHAPES.items() if shape.family == family]
    if names:
        return names
    if not family or family not in FAMILIES:
        known = (*FAMILIES, *SHAPES)
        if family and not title:
            close = nearest(family, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadConfig(f"no family or public model is called {family!r}{hint}")
        made = f" (it looks like one for {title})" if title else ""
        raise DoesNotFit(f"{file}{made} is for none of the public image models that are known; name its base")
    raise DoesNotFit(f"no public model of {family} is known by its layers; name the base of {file}")


def _components(found: Contents, family: str) -> set[str]:
    """The components that a file names."""
    row, wanted = FAMILIES[family], set[str]()
    for word in {heading(module) for module in found.layers}:
        meant = {word} if word in (row.denoiser, *row.readers) else set(meant_by(word, row)) if word else set()
        wanted |= meant & {row.denoiser, *row.readers} or {row.denoiser}
    return wanted or {row.denoiser}


def _read(source: Source, model: Any, base: str) -> Loose:
    own = own_entry(source.metadata)
    names, found, reading = read_source(model, source, own)
    drop_misfits(names, reading)
    judge(source, found, names, reading, own, False)
    words = {source.infos[key].dtype for keys in reading.keys.values() for key in keys if not key.endswith("alpha")} & {
        "F16",
        "BF16",
    }
    stored = {"dtype": words.pop()} if len(words) == 1 else {}
    facts = {**facts_of(source.metadata), **stored, **alpha_form(source, reading.applied())}
    return Loose(
        file=source.file, model=model, base=base, name=own.name if own is not None and own.name else "default",
        format=found.format(), config=reading.config, layers=reading.placed(names), facts=facts,
        notes=tuple(reading.notes),
    )  # fmt: skip
