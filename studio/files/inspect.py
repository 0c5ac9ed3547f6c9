"""Looking into an adapter file without loading it: the header is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from studio.adapters import AdapterConfig
from studio.files.detect import Contents, guess_family, sort_keys
from studio.files.embedding_told import words_told
from studio.files.grades import Graded, counted, grades_of
from studio.files.hashes import stored_hashes
from studio.files.metadata import facts_of, families_named, own_entry
from studio.files.mixture import methods_of
from studio.files.peft_settings import flagged_method
from studio.files.provenance import Provenance, provenance_of
from studio.files.respelled import tools_of
from studio.files.soft import soft_method
from studio.files.source import open_source
from studio.files.suspicions import suspicions
from studio.given import given_path

__all__ = ["AdapterFile", "inspect"]


@dataclass(frozen=True)
class AdapterFile:
    """What a file says about itself.

    Attributes:
        file: its path. format: "diffusers", "kohya", "peft", or "" for something that is no adapter.
        method: registry name of its method, or of several ("lora+full"), "" if it is of none that can be read.
        name: the adapter's name in it, or "". config: our config, where the studio wrote the file.
        sites: the layers, as the file names them, sorted. tensors: key -> (dtype, shape).
        metadata: the container's texts. facts: what they say that does not follow from the tensors.
        family: registry name of the family it was made for, or "". family_title: the same in words.
        peft: the content of ``adapter_config.json``, or None.
        unread: key -> why it cannot be read, whatever the model.
        grades: what it says about rank and scale of each layer.
        suspicions: what looks wrong in it, a sentence each.
        tools: programs that alone spell keys as some of its are.
        embeddings: learned words (textual inversion) in it: word -> label of an encoder, or "" -> number and width of
            its vectors. A file that holds nothing else is of the method "textual inversion".
    """

    file: Path
    format: str
    method: str
    name: str
    config: AdapterConfig | None
    sites: tuple[str, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    facts: Mapping[str, str]
    family: str
    family_title: str
    peft: Mapping[str, object] | None
    unread: Mapping[str, str]
    grades: tuple[Graded, ...] = ()
    suspicions: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    embeddings: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> number of layers that have it."""
        return counted(one.rank for one in self.grades)

    @property
    def alphas(self) -> dict[float, int]:
        """Numerator of the scale -> number of layers; layers of which nothing states it are left out."""
        return counted(None if one.rank is None else one.alpha for one in self.grades)

    @property
    def scales(self) -> dict[float, int]:
        """``alpha / rank`` (``/ sqrt(rank)`` where it is rank-stabilized) -> number of layers."""
        return counted(one.scale for one in self.grades)

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes that it states of itself, by their keys, in plain letters."""
        return stored_hashes(self.metadata)

    @cached_property
    def provenance(self) -> Provenance:
        """Where it comes from, by its own words."""
        return provenance_of(self.metadata)

    @property
    def rank(self) -> int | None:
        """The rank of most layers, or None for a method without one."""
        return max(self.ranks, key=lambda rank: (self.ranks[rank], -rank)) if self.ranks else None

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together."""
        total = 0
        for _, shape in self.tensors.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


def inspect(file: str | Path) -> AdapterFile:
    """Reads what a file says about itself; only the header and single numbers, such as alphas, are read.

    Args:
        file: a safetensors file, or a PEFT folder.

    Raises:
        BadFile: it is missing, truncated or hostile.

    Example:
        >>> import tempfile, torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> found = inspect(studio.save(net, Path(tempfile.mkdtemp()) / "dog.safetensors"))
        >>> found.method, found.rank, found.sites, found.parameters
        ('lora', 2, ('0',), 32)
    """
    source = open_source(given_path(file), tensors=False)
    own = own_entry(source.metadata)
    soft = soft_method(source, own)
    preferred = flagged_method(source.peft) if own is None else own.method
    told = words_told(source)
    found = sort_keys({} if soft else told.rest, preferred)
    family, title = guess_family(found, source.infos, families_named(source.metadata))
    family, title = (family, title) if told.family is None else (told.family.name, told.family.title)
    grades, troubles = grades_of(found, source, None if own is None else own.config)
    method = soft or told.method or "+".join(methods_of(source, found, own))
    format = ("studio" if source.peft is None else "peft") if soft else told.format or found.format()
    return AdapterFile(
        file=source.file,
        format=format if method else "",
        method=method,
        name="" if own is None else own.name,
        config=None if own is None else own.config,
        sites=("",) if soft else tuple(sorted(found.layers)),
        tensors={key: (info.dtype, info.shape) for key, info in sorted(source.infos.items())},
        metadata=source.metadata,
        facts=facts_of(source.metadata),
        family=own.family if own is not None and own.family else family,
        family_title=title,
        peft=source.peft,
        unread=dict(sorted({**_unread(found), **told.unread}.items())),
        grades=tuple(grades),
        suspicions=(*troubles, *suspicions(source, grades, family, own=own is not None)),
        embeddings=told.words,
        tools=tools_of(source.infos),
    )


def _unread(found: Contents) -> dict[str, str]:
    """Key -> why it cannot be read."""
    unread = dict(found.strangers)
    for layer in found.layers.values():
        spelling = layer.spelling()
        if isinstance(spelling, str):
            unread |= dict.fromkeys(layer.parts.values(), spelling)
    return dict(sorted(unread.items()))
