"""A base as a blueprint: its modules on the meta device, opened from configs and headers alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from studio.errors import BadFile, DoesNotFit, UnknownName, nearest
from studio.families import BASES, FAMILIES
from studio.families.family import Family, Outline
from studio.families.language import LANGUAGE_BASES
from studio.families.language.kinds import Kind
from studio.families.language.shapes import LANGUAGE_SHAPES
from studio.families.opening import hub
from studio.families.opening.folder import class_of, index_of
from studio.families.opening.ids import hub_id, standing
from studio.families.opening.selection import INDEX, config_files, parts_of
from studio.families.opening.single_file import told
from studio.families.opening.weights import header_of, held
from studio.families.quiet import quietly
from studio.families.shapes import SHAPES
from studio.families.surroundings import SURROUNDINGS
from studio.planning.language import first_line, folder_model, public_model

__all__ = ["Blueprint", "blueprint", "known_shapes"]

_PUBLIC: Final = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1", "stabilityai/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl", "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium", "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "black-forest-labs/FLUX.1-dev": "flux-dev", "black-forest-labs/FLUX.1-schnell": "flux-schnell",
    "black-forest-labs/FLUX.2-dev": "flux2-dev", "black-forest-labs/FLUX.2-klein-9B": "flux2-klein-9b",
    "black-forest-labs/FLUX.2-klein-4B": "flux2-klein-4b", "Qwen/Qwen-Image": "qwen-image",
    "Tongyi-MAI/Z-Image-Turbo": "z-image", "Efficient-Large-Model/Sana_1600M_1024px_diffusers": "sana-1.6b",
    "Alpha-VLLM/Lumina-Image-2.0": "lumina2", "lodestones/Chroma1-HD": "chroma",
}  # fmt: skip
"""The hub id that a single file's configs come from -> the public model with the same layers."""


_USUAL: Final = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}


class Config(dict[str, Any]):
    """A pipeline's config, whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Blueprint(Outline):
    """A base without its weights. A component is an attribute, as it is of a pipeline.

    Args:
        components: name -> module on the meta device; a language model is ``""``.
        name: what it was called.
        family: its row; None for a language model.
        scheduler: of a pipeline.
        dtype: what its files hold; None: nobody said.
        config: of the pipeline.
        kind: what a language model is opened as. folder: where its configs are; None: they are known by name.
    """

    name: str = ""
    family: Family | None = None
    scheduler: Any = None
    dtype: torch.dtype | None = None
    config: Any = field(default_factory=lambda: Config(_USUAL))
    kind: Kind | None = None
    folder: Path | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["components"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def language(self) -> nn.Module | None:
        """The language model, where it is one."""
        return self.components.get("")


def known_shapes() -> tuple[str, ...]:
    """Returns the names that :func:`blueprint` knows without any file."""
    return (*SHAPES, *LANGUAGE_SHAPES, *BASES, *LANGUAGE_BASES)


def blueprint(base: str | Path, kind: str | None = None, labels: int = 0) -> Blueprint:
    """Returns a base without its weights; no tensor is read and nothing is asked of the network.

    Args:
        base: a public model's name (``"sdxl"``, ``"llama-3-8b"``), an embedded base, a diffusers or transformers
            folder, a checkpoint of one file, or a hub id whose configs are in the cache on this machine.
        kind: what a language model is opened as, of :data:`studio.families.language.KINDS`; None: what it was saved as.
        labels: how many the head of a classifier tells apart; 0: as many as its config says.

    Raises:
        UnknownName: nothing of that name has a known shape.
        BadFile: its configs cannot be read.
        DoesNotFit: it is of no family that can be trained, or is no language model of that kind.

    Example:
        >>> blueprint("sd1").family.title, blueprint("facts").language.device.type
        ('Stable Diffusion 1.x', 'meta')
    """
    name = str(base)
    if name in SHAPES:
        return _public(name)
    if name in LANGUAGE_SHAPES:
        model, opened = public_model(name, kind, labels)
        return Blueprint({"": model}, name, kind=opened)
    place = {**BASES, **LANGUAGE_BASES}.get(name) or standing(base)
    if place is not None and place.is_dir():
        return replace(
            _folder(place, kind, labels), name=name if name in (*BASES, *LANGUAGE_BASES) else place.resolve().name
        )
    if place is not None and place.is_file():
        return _single(place)
    asked = hub_id(name) if place is None else None
    if asked is None or asked.is_file:
        close = nearest(name[:99], known_shapes(), 1)[0]
        raise UnknownName(
            f"nothing is known of the shape of {name[:200]!r}: it is no file or folder; did you mean {close!r}? "
            f"(known by name: {', '.join(known_shapes())})"
        )
    try:
        found = hub.fetch(asked, _configs, away=True)
    except UnknownName:
        raise UnknownName(
            f"nothing is known of the shape of {name!r}: the hub's cache on this machine has no configs of it; name a "
            f"public model with its layers ({', '.join(nearest(name, known_shapes(), 3))}), or download it once"
        ) from None
    return replace(_folder(found, kind, labels), name=name)


def _configs(files: Any, read: Any) -> list[str]:
    """Selects the configs of a pipeline or a language model."""
    return config_files(files, read) if INDEX in files else ["config.json"]


def _public(name: str) -> Blueprint:
    shape = SHAPES[name]
    around = SURROUNDINGS[shape.family]
    parts = {component: part.build() for component, part in shape.parts.items()}
    parts["vae"] = around.vae.build()
    family = FAMILIES[shape.family]
    return Blueprint(parts, name, family, _scheduler(around.scheduler.cls, around.scheduler.config))


def _scheduler(cls: str, config: Mapping[str, Any]) -> Any:
    return getattr(importlib.import_module("diffusers"), cls)(**config)


def _folder(folder: Path, kind: str | None, labels: int) -> Blueprint:
    if not (folder / INDEX).is_file():
        return _language(folder, kind, labels)
    index = index_of(folder)
    family, _ = class_of(folder, index)
    parts, scheduler = {}, None
    for part, (library, name) in parts_of(dict(index)).items():
        if part == "scheduler":
            scheduler = _read_scheduler(folder / part, name)
        elif part in (family.denoiser, *family.readers, "vae"):
            parts[part] = _part(folder / part, library, name)
    rest = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    return Blueprint(parts, folder.name, family, scheduler, _held(folder / family.denoiser), Config({**_USUAL, **rest}))


def _read_scheduler(folder: Path, name: str) -> Any:
    try:
        cls = getattr(importlib.import_module("diffusers"), name)
        with quietly():
            return cls.from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # whatever a broken config makes diffusers raise
        raise BadFile(f"{folder} cannot be read as the config of a {name}: {first_line(problem)}") from problem


def _part(folder: Path, library: str, name: str) -> nn.Module:
    if library not in ("diffusers", "transformers"):
        raise DoesNotFit(f"{folder} wants the class {name!r} of {library!r}, whose shape is not known")
    try:
        cls = getattr(importlib.import_module(library), name)
        with quietly(), torch.device("meta"):
            if library == "diffusers":
                return cls.from_config(cls.load_config(folder, local_files_only=True))  # type: ignore[no-any-return]
            return cls(cls.config_class.from_pretrained(folder, local_files_only=True))  # type: ignore[no-any-return]
    except Exception as problem:  # whatever a broken config makes diffusers or transformers raise
        raise BadFile(f"{folder} cannot be read as the config of a {name}: {first_line(problem)}") from problem


def _language(folder: Path, kind: str | None, labels: int) -> Blueprint:
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise BadFile(f"{folder} has neither a {INDEX} nor a config.json, so its shape is not known (it holds {found})")
    model, opened = folder_model(folder, kind, labels)
    return Blueprint({"": model}, folder.name, dtype=_held(folder), kind=opened, folder=folder)


def _held(folder: Path) -> torch.dtype | None:
    """Returns the type of most numbers in a folder's weight files, by their headers; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16" not in file.name] or files
    try:
        counts = held(header_of(file) for file in plain)
    except BadFile:
        return None
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def _single(file: Path) -> Blueprint:
    header = header_of(file)
    _, single, shapes = told(file, header)
    configs = single.configs(shapes)
    if configs not in _PUBLIC:
        raise DoesNotFit(
            f"{file} is built like {configs}, whose shape is not known by name: give a folder with configs"
        )
    counts = held([header])
    dtype = max(counts, key=lambda kind: counts[kind], default=None)
    return replace(_public(_PUBLIC[configs]), name=file.name, dtype=dtype)
