"""Opening a base: by name, from a diffusers folder or one file, from the hub, or a pipeline that is already there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from studio.device import choose_device
from studio.errors import BadConfig, DoesNotFit, UnknownName, nearest
from studio.families.blocks import staying
from studio.families.family import FAMILIES, Defaults, Family, components, family_of, is_pipeline
from studio.families.nature import nature_of
from studio.families.offloading import check_resident
from studio.families.offloading import offload as put_away
from studio.families.opening import hub
from studio.families.opening.dtype import named
from studio.families.opening.folder import read_folder
from studio.families.opening.hashing import files_hash, modules_hash, weights_hash
from studio.families.opening.ids import hub_id, standing
from studio.families.opening.selection import Selection, one_file, pipeline_files
from studio.families.opening.single_file import read_single_file
from studio.families.opening.weights import Weights
from studio.families.quiet import quietly
from studio.families.saving import Saving
from studio.quantization.counting import hidden_numbers, packed_layers
from studio.quantization.parts import QuantizedPart, by_component, quantize_part
from studio.quantization.wishes import Wishes, read_wishes, written

__all__ = ["BASES", "Base", "modules_hash", "move", "open_base", "weights_hash"]

BASES: dict[str, Path] = {"emoji": Path(__file__).parent / "emoji" / "pipeline"}
"""The embedded bases: name -> diffusers folder inside the package."""


@dataclass(repr=False)
class Base:
    """A frozen model with what the studio needs to know about it.

    Args:
        pipe: the diffusers pipeline.
        family: its row in :data:`studio.families.FAMILIES`.
        id: the name in messages and in files: ``"emoji"``, the folder's name, or the class of a pipeline object.
        native: width and height in pixels that the base was trained for.
        folder: the folder or the file that it was opened from; ``None`` for a pipeline object.
        draws: all that it can draw, where that is little; ``None`` for a base of many things.
        defaults: steps, guidance and what else is taken where nothing is asked for.
        weights: the files that hold its weights, by component; none for a pipeline object.
        saving: how it draws with less memory.
        quantized: what was quantised when it was opened, by component.
    """

    pipe: Any
    family: Family
    id: str
    native: tuple[int, int]
    folder: Path | None = field(default=None)
    draws: str | None = None
    defaults: Defaults = field(kw_only=True)
    weights: Weights = field(default_factory=dict, kw_only=True)
    saving: Saving = field(default_factory=Saving, kw_only=True)
    quantized: dict[str, QuantizedPart] = field(default_factory=dict, kw_only=True)

    def __repr__(self) -> str:
        return f"<Base {self.id}: {self.family.title}, {self.native[0]}x{self.native[1]} pixels>"

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over the weights of all components, computed once; ask before anything is baked.

        :mod:`studio.families.opening.hashing` says over which of their forms.
        """
        return files_hash(self.weights) if self.weights and self.family.hashes_files else weights_hash(self.pipe)

    @property
    def quantization(self) -> str:
        """What was quantised when it was opened, as ``quantize`` takes it; "" where nothing was."""
        return written({part: done.backend for part, done in self.quantized.items()})

    @property
    def fingerprint(self) -> str:
        """What two bases that compute the same have in common: the hash, and what was quantised."""
        return f"{self.hash} {self.quantization}" if self.quantized else self.hash

    def sparing(self, **changes: Any) -> Base:
        """Returns the same base, drawing with less memory.

        Args:
            changes: fields of :class:`~studio.families.saving.Saving`; none changes nothing.

        Raises:
            UnknownName: no attention is called so.
        """
        if not changes:
            return self
        other = replace(self, saving=replace(self.saving, **changes))
        vars(other).update({name: value for name, value in vars(self).items() if name == "hash"})
        return other

    @property
    def downscale(self) -> int:
        """Image pixels per latent cell along one side, as its own autoencoder makes them."""
        return self.family.downscale(self.pipe)

    @property
    def multiple(self) -> int:
        """Image sides are divisible by it, in pixels: as those of its family, and whole cells."""
        return math.lcm(self.family.multiple, self.downscale)

    @property
    def guidance(self) -> float:
        """Guidance scale where none is asked for."""
        return self.defaults.guidance

    @property
    def parameters(self) -> int:
        """How many weights the denoiser has."""
        denoiser = getattr(self.pipe, self.family.denoiser)
        return hidden_numbers(denoiser) + sum(parameter.numel() for parameter in denoiser.parameters())


def open_base(
    base: str | Path | Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    config_of: str | Path | None = None,
    offline: bool = False,
    offload: str | None = None,
    quantize: Wishes | None = None,
    blocks_to_swap: int = 0,
) -> Base:
    """Opens a base.

    Args:
        base: the name of an embedded base (``"emoji"``), a diffusers folder, a checkpoint of one file
            (``.safetensors``), a hub id (``"owner/name"``, ``"owner/name@revision"``, with a folder or a file of the
            repository behind it), a diffusers pipeline, or a :class:`Base`, which is returned as it is (moved if
            ``dtype`` or ``device`` say so). A path that exists is never asked of the hub, and the hub only for what its
            cache on this machine does not have.
        dtype: the weights' type, or its name (``"bf16"``); ``None``: what most of them are in the files, but fp32 for a
            small base on a CPU, unchanged for a pipeline object; ``"auto"``: the same, but what the device computes
            fastest in where the files hold fp32. Components that need another one where a base is fp16 get that.
        device: where to; ``None``: the CPU for what is read from disk, unchanged for a pipeline object.
        config_of: for a checkpoint of one file, the diffusers folder or the hub id of the base whose configs,
            tokenizers, and components that the file lacks, it is opened with; ``None``: the hub's folder of its family.
        offline: never ask the hub; ``HF_HUB_OFFLINE=1`` says so too.
        offload: where weights rest while they do not compute, a key of
            :data:`~studio.families.offloading.OFFLOADS`; ``device`` is then where they compute, ``None``: the best
            there is. ``"none"`` ends what holds; ``None``: unchanged for a pipeline object.
        quantize: which components are kept in fewer bits, and how (:data:`studio.quantization.BACKENDS`): ``"nf4"`` for
            the denoiser, ``"text_encoder_2=int8"`` for another component alone, both with a comma between. Layer by
            layer, in place and for good; ``None``: none.
        blocks_to_swap: of what is read from disk, how many of the denoiser's blocks do not move to ``device``: a
            training fetches them when they compute (:mod:`studio.families.blocks`).

    Returns:
        The base, its modules in evaluation mode.

    Raises:
        UnknownName: neither a known name nor a path nor an id that the hub has, or no such type, component or way to
            quantise. MissingPackage: what quantises is not installed.
        BadFile: what is there cannot be opened, or the hub does not give it.
        DoesNotFit: the base's family is not known, a checkpoint lacks components, the device cannot do what is asked of
            it, or a component cannot be quantised.
        BadConfig: ``config_of`` for what is no checkpoint of one file.

    Example:
        >>> open_base("emoij")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no base or folder is called 'emoij'; did you mean 'emoji'? (embedded bases: emoji)
    """
    dtype, wishes = named(dtype), read_wishes(quantize)
    if config_of is not None and not isinstance(base, (str, Path)):
        raise BadConfig(f"config_of is for a checkpoint of one file, and the base is open: leave it out ({base!r:.60})")
    wished = dtype if isinstance(dtype, torch.dtype) else None
    if isinstance(base, Base) or is_pipeline(base):
        found = _quantize(base if isinstance(base, Base) else _of_pipeline(base), wishes)
        _put(found.pipe, wished, device, offload)
        return found
    if not isinstance(base, (str, Path)):
        raise DoesNotFit(
            f"a base is a name, a diffusers folder, a .safetensors checkpoint, a hub id or a diffusers pipeline, not a "
            f"{type(base).__name__}; adapters attach to a bare module with studio.attach"
        )
    name, place = _place(base, offline, dtype is torch.float16)
    away = offload not in (None, "none")
    where = choose_device(device) if away else torch.device("cpu" if device is None else device)
    if config_of is not None and place.is_dir():
        raise BadConfig(f"config_of is for a checkpoint of one file, and {place} is a folder: leave it out")
    read = read_folder if place.is_dir() else partial(read_single_file, config_of=config_of, away=offline)
    pipe, weights = read(place, dtype, where)
    pipe.set_progress_bar_config(disable=True)
    found = _quantize(_describe(pipe, name, place, weights), wishes)
    with staying(pipe.components[found.family.denoiser], blocks_to_swap):
        _put(pipe, None, where if away else device, offload)
    return found


def _quantize(base: Base, wishes: dict[str, str]) -> Base:
    """Quantises what is asked for; the base keeps the hash of what it was."""
    modules = components(base.pipe) if wishes else {}
    parts = by_component(wishes, modules, base.family.denoiser)
    if parts and not (base.weights and base.family.hashes_files):
        _ = base.hash
    for part, name in parts.items():
        base.quantized[part] = quantize_part(f"the {part} of {base.id}", modules[part], name)
    return base


def _put(pipe: Any, dtype: torch.dtype | None, device: torch.device | str | None, offload: str | None) -> None:
    """Moves a pipeline where this is said, or lets it rest elsewhere than it computes.

    Raises:
        UnknownName: there is no such device or way to offload.
        DoesNotFit: the device cannot do it.
    """
    if offload is None:
        if dtype is not None or device is not None:
            check_resident(pipe)
        move(pipe, dtype, device)
        return
    own = pipe._execution_device if device is None and offload == "none" else device
    if dtype is not None:
        put_away(pipe, "none", torch.device("cpu"))
        move(pipe, dtype, None)
    put_away(pipe, offload, choose_device(own))


def _place(base: str | Path, offline: bool, half: bool) -> tuple[str, Path]:
    """Returns what a base is called, and the folder or the file that was named.

    Raises:
        UnknownName: there is none of that name.
        BadFile: the hub does not give it.
    """
    if isinstance(base, str) and base in BASES:
        return base, BASES[base]
    path = standing(base)
    if path is not None:
        return path.resolve().name, path
    asked = hub_id(base) if isinstance(base, str) else None
    if asked is None:
        close = nearest(str(base)[:99], BASES, 1)[0]
        raise UnknownName(
            f"no base or folder is called {_short(str(base))}; did you mean {close!r}? "
            f"(embedded bases: {', '.join(BASES)})"
        )
    whole = partial(pipeline_files, half=half)
    select: Selection = partial(one_file, name=asked.inside) if asked.is_file else whole
    return str(asked), hub.fetch(asked, select, away=offline)


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def move(model: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    """Moves a module or a pipeline where ``dtype`` or ``device`` say so; None leaves either as it is."""
    if dtype is not None or device is not None:
        with quietly():  # diffusers warns of every cast, whether anything is to be kept in fp32 or not
            model.to(*(wish for wish in (device, dtype) if wish is not None))
    if dtype is not None:
        for root in components(model).values():
            for _, layer, packing in packed_layers(root):
                packing.compute_in(layer, dtype)


def _of_pipeline(pipe: Any) -> Base:
    """The base of a pipeline that is open."""
    name = str(pipe.config.get("_name_or_path") or "")
    return _describe(pipe, Path(name).name or type(pipe).__name__)


def _describe(pipe: Any, name: str, place: Path | None = None, weights: Weights | None = None) -> Base:
    family = family_of(pipe)
    if family is None:
        raise DoesNotFit(
            f"the {type(pipe).__name__} {name!r} is of no family that the studio knows ({', '.join(FAMILIES)})"
        )
    nature, defaults = nature_of(pipe.components[family.denoiser]), family.defaults(pipe)
    own = Base(pipe, family, name, family.native(pipe), place, weights=weights or {}, defaults=defaults)
    if nature is None:
        return own
    return replace(own, draws=nature.draws, defaults=replace(defaults, guidance=nature.guidance))
