"""Textual inversion: words that were learned, as one value whatever program wrote the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from torch import Tensor

from studio.errors import BadFile
from studio.families import FAMILIES, Family
from studio.files.format import Source
from studio.files.header import TensorInfo
from studio.files.sound import check_finite
from studio.registry import Registry

__all__ = [
    "EMBED", "EMBEDDINGS", "METHOD", "OUT", "Embedding", "EmbeddingFormat", "Entry", "brought", "entries_of",
    "made_for", "named", "read_entries", "reads",
]  # fmt: skip

METHOD: Final = "textual inversion"
"""What a file of learned words is said to be of."""
OUT: Final = "_out"
"""Ends the label of vectors that OneTrainer adds behind an encoder; no other program has them."""
MOST: Final = 1024
"""Vectors of a word; no text encoder reads as many in a row."""
_SILENT: Final = re.compile(r"learned_embeds(_2|[-_]steps[-_]\d+)?|pytorch_model|adapter|embeddings?")
"""Names of files that say nothing about what is in them."""
_FLOATS: Final = ("F32", "F16", "BF16", "F64")
EMBED: Final = "<embed>"
"""What cloneofsimo's metadata says of a key that is a word."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A learned word.

    Args:
        name: what it is called; a prompt may also have it as ``embedding:name``.
        token: the word, as it stands in a prompt.
        vectors: what encoders read in its place, ``(n, d)`` in the file's dtype, by the encoder's label: ``"clip_l"``,
            ``"clip_g"``, ``"t5xxl"``, ..., or ``""`` where the file has vectors of one encoder and does not say which.
        format: of the file, a key of :data:`EMBEDDINGS`.
        keys: label -> key of the file.
        facts: what else the file says, texts by name.

    Example:
        >>> import torch
        >>> Embedding(name="cat", token="<cat>", vectors={"": torch.zeros(2, 768)}).title
        'Stable Diffusion 1.x'
    """

    name: str
    token: str
    vectors: Mapping[str, Tensor]
    format: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The bases that it is for, in words."""
        return reads({label: tensor.shape[-1] for label, tensor in self.vectors.items()})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A learned word in a file, as the keys tell it.

    Args:
        name: as in :class:`Embedding`, with ``token``.
        keys: label -> key of the file.
    """

    name: str
    token: str
    keys: Mapping[str, str]


Finder: TypeAlias = Callable[[Mapping[str, TensorInfo], Mapping[str, str], str], "tuple[Entry, ...] | None"]
Writer: TypeAlias = Callable[[Sequence[Embedding]], "dict[str, Tensor]"]
Stater: TypeAlias = Callable[[Sequence[Embedding]], "dict[str, str]"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingFormat:
    """How a program writes learned words.

    Args:
        name: registry name. title: the programs, in words.
        entries: ``(keys, metadata, name of the file) -> the words in it``; None where it is another format.
        keyed: ``words -> tensors by key``.
        stated: ``words -> metadata`` beside them.
        pickled: whether the file is a pickle of torch's, not safetensors.
        several: whether a file may hold several words.
    """

    name: str
    title: str
    entries: Finder
    keyed: Writer
    stated: Stater
    pickled: bool = False
    several: bool = False


EMBEDDINGS: Final[Registry[EmbeddingFormat]] = Registry("embedding format")


def named(stem: str, token: str = "") -> tuple[str, str]:
    """Returns name and token of a word that has the name of its file, or one of its own.

    Example:
        >>> named("EasyNegative"), named("learned_embeds", "<cat-toy>"), named("toy", "<cat-toy>")
        (('EasyNegative', 'EasyNegative'), ('cat-toy', '<cat-toy>'), ('toy', '<cat-toy>'))
    """
    name = token.strip("<>| ") or token if token and _SILENT.fullmatch(stem) else stem
    return name, token or name


def entries_of(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], stem: str
) -> tuple[str, tuple[Entry, ...]] | None:
    """Returns the format and the words of a file of learned words, or None where it is no such file.

    Args:
        infos: key -> dtype and shape. metadata: the container's texts. stem: the file's name without its ending.

    Raises:
        BadFile: it is one, and cannot be read.
    """
    for format in EMBEDDINGS.values():
        found = format.entries(infos, metadata, stem) if infos else None
        if found is not None:
            return format.name, found
    return None


def brought(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], stem: str) -> dict[str, tuple[Entry, ...]]:
    """Returns the words that an adapter's file brings along, by their format.

    Args:
        infos: key -> dtype and shape. metadata: the container's texts. stem: the file's name without its ending.

    Raises:
        BadFile: it brings some, and they cannot be read.
    """
    kinds = (
        {key: info for key, info in infos.items() if key.startswith("bundle_emb.")},
        {key: info for key, info in infos.items() if metadata.get(key) == EMBED},
    )
    found = (entries_of(some, metadata, stem) for some in kinds if some)
    return dict(one for one in found if one is not None)


def read_entries(source: Source, format: str, entries: Sequence[Entry]) -> tuple[Embedding, ...]:
    """Returns words of an opened file, with their vectors.

    Args:
        source: the file, with its tensors. format: of the words. entries: which.

    Raises:
        BadFile: tensors that are no vectors. Refused: one holds NaN or infinities.
    """
    own = {key for entry in entries for key in entry.keys.values()}
    for key in sorted(own):
        _check_vectors(source.file, key, source.infos[key])
    check_finite(source.tensors, own, source.file)
    facts = {key: text for key, text in source.metadata.items() if key not in ("format", *own) and text != EMBED}
    made = list[Embedding]()
    for entry in entries:
        vectors = {label: _rows(source.tensors[key]) for label, key in entry.keys.items()}
        _check_lengths(source.file, entry, vectors)
        made.append(
            Embedding(
                name=entry.name, token=entry.token, vectors=vectors, format=format, keys=dict(entry.keys), facts=facts
            )
        )
    return tuple(made)


def _rows(tensor: Tensor) -> Tensor:
    """Vectors ``(n, d)`` of a tensor that may be a single one."""
    rows = tensor.detach()
    return (rows if rows.dim() == 2 else rows[None]).contiguous()


def _check_vectors(file: Path, key: str, info: TensorInfo) -> None:
    shape = info.shape if len(info.shape) == 2 else (1, *info.shape)
    if info.dtype not in _FLOATS or len(shape) != 2 or 0 in shape:
        raise BadFile(
            f"{file}: {key!r} is {info.dtype} of the shape {info.shape}, and the vectors of a learned word are numbers "
            "(n, d)"
        )
    if shape[0] > MOST:
        raise BadFile(f"{file}: {key!r} has {shape[0]:,} vectors, and no text encoder reads as many in a row")


def _check_lengths(file: Path, entry: Entry, vectors: Mapping[str, Tensor]) -> None:
    """The states of CLIP's encoders stand side by side, so a word has as many vectors in each."""
    counts = {label: len(rows) for label, rows in vectors.items() if label.startswith("clip") and OUT not in label}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {label}" for label, count in counts.items())
        raise BadFile(f"{file}: {entry.token!r} has {said}, and both encoders read a word with as many vectors")


# -- the bases that words are for --------------------------------------------------------------------------------------


def made_for(widths: Mapping[str, int]) -> Family | None:
    """Returns the family that learned words are for, told by the widths of their vectors, or None.

    Args:
        widths: by the encoder's label, ``""`` where none is given.

    Example:
        >>> made_for({"": 1024}).title, made_for({"clip_l": 768, "clip_g": 1280}).title, made_for({"": 7})
        ('Stable Diffusion 2.x', 'Stable Diffusion XL', None)
    """
    own = {label: width for label, width in widths.items() if not label.endswith(OUT)}
    for family in FAMILIES.values():
        theirs = {one.label: one.width for one in family.encoders}
        alone = len(own) == len(theirs) == 1 and set(own) <= {"", "clip_l", *theirs}
        if "" not in theirs and (own == theirs or (alone and [*own.values()] == [*theirs.values()])):
            return family
    return None


def reads(widths: Mapping[str, int]) -> str:
    """Returns the base that vectors of these widths are for, in words.

    Args:
        widths: by the encoder's label.

    Example:
        >>> reads({"": 768}), reads({"": 7})
        ('Stable Diffusion 1.x', 'a base whose encoder reads vectors of 7 numbers')
    """
    family = made_for(widths)
    if family is not None:
        return family.title
    own = [f"{width}{f' ({label})' if label else ''}" for label, width in widths.items() if not label.endswith(OUT)]
    encoders = "encoders read" if own[1:] else "encoder reads"
    return f"a base whose {encoders} vectors of {' and '.join(own)} numbers"
