"""Opening a base: by name, from a diffusers folder, or a pipeline that is already there. Never from the network."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.device import dtype_named
from studio.errors import BadFile, DoesNotFit, UnknownName, nearest
from studio.families.family import FAMILIES, Defaults, Family, family_of, is_pipeline
from studio.families.nature import nature_of
from studio.families.quiet import quietly
from studio.given import check_regular, parse_json, read_given

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
        folder: where it was opened from; ``None`` for a pipeline object.
        draws: all that it can draw, where that is little; ``None`` for a base of many things.
        defaults: steps, guidance and what else is taken where nothing is asked for.
    """

    pipe: Any
    family: Family
    id: str
    native: tuple[int, int]
    folder: Path | None = field(default=None)
    draws: str | None = None
    defaults: Defaults = field(kw_only=True)

    def __repr__(self) -> str:
        return f"<Base {self.id}: {self.family.title}, {self.native[0]}x{self.native[1]} pixels>"

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over the weights of all components, computed once; ask before anything is baked."""
        return weights_hash(self.pipe)

    @property
    def guidance(self) -> float:
        """Guidance scale where none is asked for."""
        return self.defaults.guidance

    @property
    def parameters(self) -> int:
        """How many weights the denoiser has."""
        return sum(parameter.numel() for parameter in getattr(self.pipe, self.family.denoiser).parameters())


def open_base(
    base: str | Path | Any, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Base:
    """Opens a base.

    Args:
        base: the name of an embedded base (``"emoji"``), a diffusers folder, a diffusers pipeline, or a :class:`Base`,
            which is returned as it is (moved if ``dtype`` or ``device`` say so).
        dtype: the weights' type, or its name (``"bf16"``); ``None``: fp32 for what is read from disk, unchanged for a
            pipeline object.
        device: where to; ``None``: the CPU for what is read from disk, unchanged for a pipeline object.

    Returns:
        The base, its modules in evaluation mode.

    Raises:
        UnknownName: neither a known name nor a folder, or no such type.
        BadFile: the folder is not a whole diffusers pipeline.
        DoesNotFit: the pipeline's family is not known.

    Example:
        >>> open_base("emoij")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no base or folder is called 'emoij'; did you mean 'emoji'? (embedded bases: emoji)
    """
    dtype = None if dtype is None else dtype_named(dtype)
    if isinstance(base, Base):
        move(base.pipe, dtype, device)
        return base
    if is_pipeline(base):
        pipe: Any = base
        move(pipe, dtype, device)
        name = str(pipe.config.get("_name_or_path") or "")
        return _describe(pipe, Path(name).name or type(pipe).__name__, None)
    if not isinstance(base, (str, Path)):
        raise DoesNotFit(
            f"a base is a name, a diffusers folder or a diffusers pipeline, not a {type(base).__name__}; "
            "adapters attach to a bare module with studio.attach"
        )
    if isinstance(base, str) and base in BASES:
        return _describe(_read(BASES[base], dtype, device), base, BASES[base])
    folder = _folder(base)
    return _describe(_read(folder, dtype, device), folder.resolve().name, folder)


def _folder(base: str | Path) -> Path:
    """Returns the folder that was named as a base.

    Raises:
        UnknownName: there is none of that name.
        BadFile: it is a file.
    """
    try:
        folder = Path(base).expanduser()
        found = folder.stat().st_mode
    except (OSError, RuntimeError, ValueError):  # not there, no such user, a zero byte
        close = nearest(str(base)[:99], BASES, 1)[0]
        raise UnknownName(
            f"no base or folder is called {_short(str(base))}; did you mean {close!r}? "
            f"(embedded bases: {', '.join(BASES)})"
        ) from None
    if not stat.S_ISDIR(found):
        raise BadFile(
            f"{folder} is a single file, and bases are read from diffusers folders: convert it once with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)"
        )
    return folder


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def move(model: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    """Moves a module or a pipeline where ``dtype`` or ``device`` say so; None leaves either as it is."""
    if dtype is not None or device is not None:
        model.to(*(wish for wish in (device, dtype) if wish is not None))


def weights_hash(pipe: Any) -> str:
    """SHA-256 over every weight of a pipeline, as fp32 little-endian bytes with its name and shape.

    The type on disk does not matter: an fp16 folder opened in fp16 or in fp32 has one hash. Adapters that are attached
    do not count (their keys hold ``.adapters.``).
    """
    return modules_hash({name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)})


def modules_hash(modules: Mapping[str, nn.Module]) -> str:
    """As :func:`weights_hash`, of modules by name."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        for key, tensor in sorted(module.state_dict().items()):
            if ".adapters." in key or key.startswith("adapters."):
                continue
            value = (_fetched(module, key) if tensor.is_meta else tensor).detach().cpu()
            value = (value.float() if value.is_floating_point() else value.long()).contiguous()
            digest.update(f"{name}.{key} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _fetched(module: nn.Module, key: str) -> torch.Tensor:
    """A tensor that offloading keeps away from its module."""
    from accelerate.utils import align_module_device

    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    with align_module_device(owner):
        return getattr(owner, name).detach().clone()


def _read(folder: Path, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    index = folder / "model_index.json"
    if not index.is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise BadFile(f"{folder} is no diffusers pipeline: it has no model_index.json (it holds {found})")
    try:
        for file in (index, *folder.glob("*/*")):
            if not file.is_dir():
                check_regular(file)
        name = parse_json(read_given(index, "config-bytes"))["_class_name"]
    except (ValueError, KeyError, OSError, TypeError, BadFile) as problem:
        raise BadFile(f"{index} cannot be read as a diffusers index ({_short(str(problem))}); copy it again") from None
    import diffusers

    with quietly():
        cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise DoesNotFit(f"{folder} wants the class {name!r}, which diffusers {diffusers.__version__} does not have")
    opened = {pipeline for family in FAMILIES.values() for pipeline in family.pipelines}
    if name not in opened:
        known = ", ".join(sorted(opened))
        raise DoesNotFit(f"{folder} is a {name}, which the studio does not know; it opens {known}")
    try:
        with quietly():
            pipe = cls.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    except Exception as problem:  # safetensors, json, OSError, KeyError: whatever a broken folder makes diffusers raise
        sentence = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
        raise BadFile(f"{folder} cannot be opened as a {name}: {sentence}") from problem
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device) if device is not None else pipe


def _describe(pipe: Any, name: str, folder: Path | None) -> Base:
    family = family_of(pipe)
    if family is None:
        raise DoesNotFit(
            f"the {type(pipe).__name__} {name!r} is of no family that the studio knows ({', '.join(FAMILIES)})"
        )
    nature, defaults = nature_of(pipe.components[family.denoiser]), family.defaults(pipe)
    if nature is None:
        return Base(pipe, family, name, family.native(pipe), folder, defaults=defaults)
    defaults = replace(defaults, guidance=nature.guidance)
    return Base(pipe, family, name, family.native(pipe), folder, nature.draws, defaults=defaults)
