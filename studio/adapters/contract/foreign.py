"""How other programs have a method: what they call its tensors and settings, and where theirs computes otherwise.

A method's file fills in :class:`Peft`, and :class:`Lycoris` where kohya's tools and LyCORIS have it too. Reading and
writing files, and ``studio.peft``, know nothing else about a method. A function that is handed over stands above the
class that it is for; most methods need none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from torch import Tensor

from studio.adapters.contract.coverage import USUAL_TARGETS, peft_covers
from studio.adapters.sites.site import Site

__all__ = [
    "OURS",
    "Choice",
    "Either",
    "Foreign",
    "Layers",
    "Lycoris",
    "Part",
    "Peft",
    "Settings",
    "Sites",
    "Tables",
]

Sites: TypeAlias = Mapping[str, Site]
"""Path -> layer."""
Layers: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""Path -> name -> tensor."""
Tables: TypeAlias = dict[str, dict[str, Tensor]]
"""The same, made anew."""


# -- what hooks do where a method has none -----------------------------------------------------------------------------


def _nowhere(site: Site) -> str:
    return ""


def _as_now(site: Site, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return parts


def _as_read(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


def _as_saved(config: Any, sites: Sites, layers: Layers) -> Tables:
    return {path: dict(tensors) for path, tensors in layers.items()}


def _nothing(config: Any, sites: Sites, layers: Layers) -> dict[str, Any]:
    return {}


def _no_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_new_fields(config: Any, sites: Sites) -> dict[str, Any]:
    return {}


def _no_note(sites: Sites) -> str:
    return ""


def _same_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return fields


def _same_word(config: Any, word: str) -> dict[str, Any]:
    return {"init": word}


def _sound(config: Any) -> None:
    pass


# -- any program -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """How a program has a method.

    Attributes:
        tensors: our tensor -> its name there.
        layouts: our tensor -> its shape there, in the words of :mod:`studio.files.layout`; "plain" where it is ours.
        fixed: fields of our config that are always so there.
        limit: site -> why the program has no such layer, or none that its tensors describe; "" where it has.
        differs: site -> how the program's own computation there departs from what the tensors mean, or "". Such an
            adapter is not written for it; one that is read acts as its tensors mean, and the report says so.
        older: site, part -> tensor as an older version of the program may have stored them -> as it stores them now.
        read: what is stated beside the tensors (PEFT's config, LyCORIS' alpha), the site, tensors as they are stored
            under our names -> ours.
        store: config, sites, our tensors -> the tensors as it stores them.

    ``read`` and ``store`` raise DoesNotFit for what cannot be said here, or there.
    """

    tensors: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    limit: Callable[[Site], str] = _nowhere
    differs: Callable[[Site], str] = _nowhere
    older: Callable[[Site, Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_now
    read: Callable[[Mapping[str, Any], Site, dict[str, Tensor]], dict[str, Tensor]] = _as_read
    store: Callable[[Any, Sites, Layers], Tables] = _as_saved

    def refusal(self, site: Site) -> str:
        """Returns why the program has no such layer, or "" where it has."""
        return self.limit(site)


OURS: Final = Foreign()
"""The studio's own way, in which nothing is otherwise."""


# -- PEFT --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A small config inside a config of PEFT's.

    Attributes:
        name: of its class. defaults: its fields and their defaults.
        check: refuses, with a BadConfig, an object of the class with impossible fields.
    """

    name: str
    defaults: Mapping[str, Any]
    check: Callable[[Any], None] = _sound


@dataclass(frozen=True)
class Choice:
    """An enumeration of PEFT's as a field's default: its name, its words, and the one that is the default."""

    name: str
    words: tuple[str, ...]
    usual: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PEFT's config class of a method; ``studio.peft`` makes it from this. Most methods say ``name`` to ``fields``.

    Attributes:
        name: of the class ("LoraConfig"). extends: the name of the method's config class that it extends, or "".
        prefix: what PEFT's names of the method's tensors begin with, where that is not its word.
        defaults: the class's own fields and their defaults in PEFT, without those that every config has.
        chooses: its fields that choose among the layers that are named.
        fields: our field -> PEFT's, where they mean the same.
        flags: PEFT's fields that tell the method from others of its type, and what they are.
        init: the field that names the start. starts: its words beside which tensors mean what they say; None: all.
        reads: fields that the functions below, or ``read``, take into account.
        beside: fields that change nothing about what tensors mean: how they were begun and trained.
        parts: fields that hold a small config of their own.
        targets: model type of transformers -> the layers that PEFT adapts where none are named.
        embedding: whether that is the input embedding instead, whatever the model.
        check: refuses, with a BadConfig, an object of the class with impossible fields.
        restate: its fields -> the same ones with ranks and alphas as LoRA's config has them.
        config: its fields -> fields of ours that ``fields`` does not say. For virtual tokens ``is_encoder_decoder``, of
            the model, is among them. It raises DoesNotFit for what cannot be said here.
        new: an object of the class, and the layers -> fields of ours that only a new adapter has to be told.
        start: the object, and the word of its start -> fields of ours.
        note: the layers of a new adapter -> what PEFT could not do with it there, or "".
        state: our config, sites, tensors as PEFT stores them -> its fields that ``fields`` does not say.
    """

    name: str
    extends: str = ""
    prefix: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    chooses: tuple[str, ...] = ("exclude_modules", "layers_to_transform", "layers_pattern")
    fields: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    init: str = "init_weights"
    starts: tuple[str, ...] | None = None
    reads: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: USUAL_TARGETS)
    embedding: bool = False
    check: Callable[[Any], None] = _sound
    restate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _same_fields
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = _no_fields
    new: Callable[[Any, Sites], dict[str, Any]] = _no_new_fields
    start: Callable[[Any, str], dict[str, Any]] = _same_word
    note: Callable[[Sites], str] = _no_note
    state: Callable[[Any, Sites, Layers], dict[str, Any]] = _nothing


@dataclass(frozen=True, kw_only=True)
class Peft(Foreign):
    """PEFT's names for a method; they are those of the studio's own files too. Most say ``type`` to ``covers``.

    Attributes:
        type: PEFT's word for the method ("LORA"), "" where PEFT has none.
        settings: its config class.
        embedding: our tensor -> its name on an Embedding, where that is another one.
        shared: our tensors that all layers share and the first one holds -> their names beside the layers.
        repeated: whether PEFT stores those with every layer as well.
        aliases: other spellings of the names.
        covers: the layers that PEFT has it on, by PEFT's words: Linear, Conv1D (GPT-2's), Embedding,
            MultiheadAttention, Conv1d, Conv2d, Conv3d; none named: all that ``limit`` does not refuse.
        parameters: whether PEFT has it on bare parameters.
        additive: whether PEFT makes LoRAs of its adapters: its change is added to the weight, and a pair comes near it.
        diffusers: whether diffusers reads its settings out of a single file.
        respelled: name -> how diffusers spells it there.
        without: fields of every config that its config does not have.

    Example:
        >>> peft = Peft(
        ...     type="BEFT",
        ...     settings=Settings(name="BeftConfig", defaults={"init_weights": True}),
        ...     tensors={"bias": "beft_bias"},
        ...     layouts={"bias": "row"},
        ...     covers=("Linear",),
        ... )
        >>> from torch import nn
        >>> from studio.adapters.sites.site import ConvSite
        >>> peft.refusal(ConvSite("layer", nn.Conv2d(1, 1, 1)))
        "PEFT's covers Linear layers, no Conv2d"
    """

    type: str = ""
    settings: Settings = Settings(name="")
    embedding: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    repeated: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    covers: tuple[str, ...] = ()
    parameters: bool = False
    additive: bool = False
    diffusers: bool = False
    respelled: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def refusal(self, site: Site) -> str:
        return (peft_covers(site, *self.covers) if self.covers else "") or self.limit(site)

    def names(self, site: Site) -> dict[str, str]:
        """Returns our tensor -> its name at a layer."""
        return {**self.tensors, **(self.embedding if site.kind == "embedding" else {})}

    @property
    def turns(self) -> bool:
        """Whether its config says if a layer keeps its weight transposed, as GPT-2's does."""
        return "fan_in_fan_out" in self.settings.defaults and (not self.covers or "Conv1D" in self.covers)


# -- kohya's tools and LyCORIS -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lycoris(Foreign):
    """kohya's or LyCORIS' names for a method.

    Attributes:
        algo: LyCORIS' word for the method, "" for kohya's own network.
        norm: our tensor -> its name on a norm, where that is another one.
        minus: our tensor -> what LyCORIS subtracts from it before storing it.
        scaled: tensors that LyCORIS stores multiplied by the scale.
        unranked: the tensor that takes the scale where no tensor has a rank, because LyCORIS applies none there.
        beside: numbers that stand beside the tensors of every layer.
        form: config, our tensors -> those of another method with the same change, where only that one is known there.
    """

    algo: str = ""
    norm: Mapping[str, str] = field(default_factory=dict)
    minus: Mapping[str, float] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()
    unranked: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)
    form: Callable[[Any, Layers], tuple[Any, Tables]] | None = None

    def names(self, site: Site) -> dict[str, str]:
        """Returns our tensor -> its name at a layer."""
        return dict(self.norm if self.norm and site.kind == "norm" else self.tensors)


@dataclass(frozen=True, kw_only=True)
class Either:
    """Two tensors that have one name elsewhere, the first two of :attr:`Peft.tensors`: which one a layer has.

    Attributes:
        field: our field with the patterns of the layers that have the second. setting: PEFT's.
        flag: the number beside a layer's tensors that says so in LyCORIS' files.
        usual: the default targets of PEFT that have the second.
    """

    field: str
    setting: str
    flag: str
    usual: frozenset[str]
