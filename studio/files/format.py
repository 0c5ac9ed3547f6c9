"""A file format: how it names layers and tensors, and where it states the scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from torch import Tensor

from studio.adapters import Adapter, AdapterConfig, Site
from studio.adapters.contract.foreign import OURS, Foreign
from studio.files.header import TensorInfo
from studio.files.names import Names
from studio.files.payload import Payload
from studio.files.scale import Grade
from studio.registry import Registry

__all__ = ["FORMATS", "Draft", "Format", "Named", "Settings", "Source", "common_formats"]

Named: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""A layer, by its path or by its name in a file -> part -> tensor."""


@dataclass(frozen=True)
class Source:
    """A file that was opened.

    Attributes:
        file: what the caller named. infos: key -> dtype and shape.
        tensors: key -> tensor; those of one number if only the header was read. metadata: the container's texts.
        peft: the content of ``adapter_config.json`` beside it, or None.
        payload: the hash of the tensors, where they were read and the file states one.
        mlx: the content of ``adapter_config.json`` beside a file of MLX's, or None.
    """

    file: Path
    infos: Mapping[str, TensorInfo]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    peft: Mapping[str, Any] | None = None
    payload: Payload | None = None
    mlx: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Draft:
    """An adapter on its way into a file.

    Attributes:
        config: the method and its settings. names: the model's names.
        sites: path -> site. layers: path -> the tensors, as the format's own program has them.
    """

    config: AdapterConfig
    names: Names
    sites: Mapping[str, Site]
    layers: Mapping[str, Mapping[str, Tensor]]


class Settings(Protocol):
    """What the config in a file (not the tensors) says about the layers."""

    notes: list[str]
    stated: Mapping[str, Any]
    component: str

    def grade(self, module: str, rank: int | None) -> Grade:
        """Returns rank and scale of the layer that the file calls ``module``, whose tensors have rank ``rank``."""

    def fields(self) -> dict[str, Any]:
        """Returns the file's fields that have a field of ours, under our names, without rank and alpha."""

    def second(self, module: str) -> bool | None:
        """Says whether the layer has the second of two tensors of one name; None if that is not stated."""


def _one_by_one(names: Names, layers: Named) -> Named | None:
    return None


def _component_label(names: Names, path: str) -> str:
    return names.relative(path)[0]


def _at_all_ranks(draft: Draft) -> Draft:
    return draft


def _as_named(names: Names, path: str, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return parts


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        name: registry name. title: in sentences. dialect: which spelling of tensors it writes, "peft" or "lycoris".
        folder: whether ``file`` is a folder. suffix: what a file of it ends in.
        owns: whether a key is of this format, by its beginning.
        split: key -> (module, part), or None where the end is unknown.
        find: the path that a module's name means in a model, or None.
        spell: the name of a path in a file.
        settings: what the file's config says about a method and a component, of which the names in the file and here
            are given ("" for a model by itself), or None where it says nothing.
        write: writes keys to tensors, and metadata, to a file.
        check: refuses what this format cannot say.
        respells: whether names are spelled as in diffusers' single files, where those are others.
        peft: whether PEFT reads it, so that tensors are as PEFT has them; else they are the studio's, or LyCORIS'.
        gather: path -> parts of its adapter, as name in the file -> parts, where layers are put together there; None:
            each has its own name.
        root: what stands before a tensor that all layers of a path's component share.
        methods: the methods that it has; none named: all.
        level: the same adapter with the one rank or alpha that it can state for all layers.
        turned: path, part -> tensor as a file has it -> as the dialect has it.
        rank_axis: which axis of a pair's ``down`` in a file is the rank.
        language: whether it is for language models alone.
    """

    name: str
    title: str
    dialect: str
    folder: bool = False
    suffix: str = ".safetensors"
    owns: Callable[[str], bool]
    split: Callable[[str], tuple[str, str] | None]
    find: Callable[[Names, str], str | None]
    spell: Callable[[Names, str], str]
    settings: Callable[[Source, str, tuple[str, ...]], Settings | None]
    write: Callable[[Path, Mapping[str, Tensor], dict[str, str], Draft], None]
    check: Callable[[Draft], None]
    respells: bool = False
    peft: bool = False
    gather: Callable[[Names, Mapping[str, Mapping[str, Tensor]]], Mapping[str, Mapping[str, Tensor]] | None] = (
        _one_by_one
    )
    root: Callable[[Names, str], str] = _component_label
    methods: tuple[str, ...] = ()
    level: Callable[[Draft], Draft] = _at_all_ranks
    turned: Callable[[Names, str, Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_named
    rank_axis: int = 0
    language: bool = False

    def holds(self, config: AdapterConfig) -> bool:
        """Says whether it has the method of an adapter, or all of its methods."""
        return not self.methods or all(member.method in self.methods for member in config.members)

    def form(self, adapter: type[Adapter], dialect: str = "") -> Foreign:
        """Returns how a file of this format has a method.

        Args:
            adapter: the method's. dialect: that of the file's names, where it may be another than the format writes.
        """
        if "lycoris" in (self.dialect, dialect):
            return adapter.lycoris
        return adapter.peft if self.peft else OURS


FORMATS: Final[Registry[Format]] = Registry("file format")


def common_formats() -> tuple[str, ...]:
    """Returns the names of the formats that are not for language models alone.

    Example:
        >>> import studio.files
        >>> common_formats()
        ('diffusers', 'kohya', 'native', 'peft')
    """
    return tuple(name for name, format in FORMATS.items() if not format.language)
