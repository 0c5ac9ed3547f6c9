"""Saving an adapter: the same bytes for the same adapter, all of them or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.adapters import AdapterConfig, Foreign, Site, adapters, state
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.hosting.attached import check_known, check_unbaked
from studio.adapters.tokens.contract import TokenConfig
from studio.errors import BadConfig, DoesNotFit
from studio.families import is_pipeline
from studio.files.format import FORMATS, Format, Saved
from studio.files.header import DTYPES, payload_hash
from studio.files.layout import to_file
from studio.files.metadata import write_metadata
from studio.files.names import Names
from studio.files.scale import Seen, settle
from studio.files.soft import save_soft

__all__ = ["save", "spelled"]


def save(
    model: Any,
    file: str | Path,
    *,
    name: str = "default",
    format: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Saves an adapter as one safetensors file, or as a PEFT folder.

    Two saves of one adapter are byte-identical, and so is saving what was loaded. The file appears only when it is
    complete.

    Args:
        model: any module, or a diffusers pipeline, that carries the adapter.
        file: where to; with ``format="peft"`` a folder.
        name: which adapter.
        format: "diffusers", "kohya" (also read by A1111 and ComfyUI) or "peft". None: "peft" for a path without an
            ending, else "diffusers".
        dtype: what the tensors are stored in; None: as they are, or as they were in the file that they came from.
        metadata: facts that go with it, texts by name: base, base_hash, trigger, seed, steps, dataset, licence,
            parents, title, ... Facts that a loaded adapter brought stay unless they are given anew.

    Returns:
        The file, or the folder.

    Raises:
        UnknownName: no adapter has that name, or no format. DoesNotFit: a blend is baked, or the format cannot say what
            this adapter is. BadConfig: metadata that is not text, or an impossible dtype. BadFile: nothing can be
            written there (no space, no permission).

    Example:
        >>> import tempfile, torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> file = studio.save(net, Path(tempfile.mkdtemp()) / "dog.safetensors", metadata={"trigger": "sks dog"})
        >>> studio.inspect(file).facts
        {'trigger': 'sks dog'}
    """
    file = Path(file)
    check_unbaked(model, "save")
    check_known(model, name)
    chosen = FORMATS[format if format is not None else _usual_format(model, file)]
    info = adapters(model)[name]
    facts = {**info.metadata, **(metadata or {})}
    stored = _stored_dtype(dtype, facts, info.trainable)
    if isinstance(info.config, TokenConfig):
        return save_soft(model, file, chosen, name, facts, stored)
    saved, tensors = spelled(model, name, chosen, stored)
    text = write_metadata(saved.config, facts, name=name, family=saved.names.family, payload=payload_hash(tensors))
    chosen.write(file, tensors, text, saved)
    return file


def spelled(model: Any, name: str, format: Format, dtype: torch.dtype | None = None) -> tuple[Saved, dict[str, Tensor]]:
    """Returns an adapter as a format has it, without writing it: what it is, and its tensors by key.

    Args:
        model: the model that carries it. name: which adapter. format: the format.
        dtype: what the tensors are brought to; None: as they are.

    Raises:
        UnknownName: no adapter has that name. DoesNotFit: the format cannot say what this adapter is.
    """
    check_known(model, name)
    info = adapters(model)[name]
    names = Names(model)
    names.chosen = frozenset(info.sites)
    layers: dict[str, dict[str, Tensor]] = {path: {} for path in sorted(info.sites)}
    for key, tensor in state(model, name).items():
        path, _, tensor_name = key.rpartition(".")
        layers[path][tensor_name] = tensor.detach()
    layers = {path: tensors for path, tensors in layers.items() if tensors}  # a tied layer has none of its own
    config, layers = _plain(info.config, layers, format)
    sites = {path: names.site(path, config.adapter.kinds) for path in layers}
    saved = _settled(config, names, sites, layers, format)
    format.check(saved)
    saved = _as_stored(saved, format)
    return saved, _keyed(saved, format, dtype)


def _usual_format(model: Any, file: Path) -> str:
    known = is_pipeline(model) or file.suffix
    return "diffusers" if known else "peft"


def _stored_dtype(dtype: torch.dtype | None, facts: dict[str, str], trainable: bool) -> torch.dtype | None:
    """The dtype to store in; a fact "dtype" says what a file that was loaded had."""
    loaded = facts.pop("dtype", None)
    if dtype is None:
        return None if trainable or loaded is None else DTYPES.get(loaded)
    if dtype not in DTYPES.values() or not dtype.is_floating_point:
        raise BadConfig(f"dtype={dtype} cannot store an adapter; use torch.float32, torch.bfloat16 or torch.float16")
    return dtype


def _plain(
    config: AdapterConfig, layers: dict[str, dict[str, Tensor]], format: Format
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Brings what other programs do not know (starts of two pairs, pruned ranks) to what they do, at the same scale."""
    foreign = config.adapter.foreign
    if foreign.fold is not None:
        config, layers = foreign.fold(config, layers)
    if foreign.lycoris_form is not None and format.dialect == "lycoris":
        config, layers = foreign.lycoris_form(config, layers)
    return config, layers


def _settled(
    config: AdapterConfig, names: Names, sites: Mapping[str, Site], layers: dict[str, dict[str, Tensor]], format: Format
) -> Saved:
    """The adapter as this format states it: rank and scale of every layer are what a reader will find."""
    foreign = config.adapter.foreign
    if not isinstance(config, RankedConfig):
        return Saved(config, names, sites, layers)
    seen: dict[str, Seen] = {}
    for path, tensors in layers.items():
        site = sites[path]
        scale = config.scale_at(site.path)
        rank = next((tensors[one].shape[len(site.lead)] for one in foreign.ranks if one in tensors), None)
        if rank is None and format.dialect == "lycoris" and foreign.unranked in tensors and scale != 1.0:
            tensors = {**tensors, foreign.unranked: tensors[foreign.unranked] * scale}
            layers = {**layers, path: tensors}
            scale = 1.0
        said = Seen(rank, scale)
        if seen.setdefault(site.path, said) != said:
            raise DoesNotFit(
                f"two components have a layer {site.path!r} with other ranks or alphas; save each by itself"
            )
    return Saved(settle(config, seen), names, sites, layers)


def _as_stored(saved: Saved, format: Format) -> Saved:
    """The adapter as the format's own program has the method."""
    way = format.way(saved.config.adapter.foreign)
    for path, site in saved.sites.items():
        reason = way.limit(site) or way.differs(site)
        if reason:
            raise DoesNotFit(
                f"a {format.title} cannot hold {type(saved.config).__name__} on {path}: {reason}; save with "
                "format='diffusers'"
            )
    layers = {path: dict(tensors) for path, tensors in saved.layers.items()}
    stated, layers = way.write(saved.config, saved.sites, layers)
    return dataclasses.replace(saved, layers=layers, stated=stated)


def _keyed(saved: Saved, format: Format, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors under the keys of the format."""
    keyed: dict[str, Tensor] = {}
    shared = saved.config.adapter.foreign.peft_shared
    for path, tensors in saved.layers.items():
        for name in shared.keys() & tensors.keys():
            root = format.root(saved.names, path)
            key = f"{root}.{shared[name]}" if root else shared[name]
            keyed[key] = tensors[name] if dtype is None else tensors[name].to(dtype)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in shared}
        module = format.spell(saved.names, path)
        for part, tensor in _parts(saved, path, tensors, format.dialect, dtype).items():
            part = format.respelled.get(part, part)
            keyed[f"{module}.{part}" if module else part] = tensor
    return keyed


def _parts(
    saved: Saved, path: str, tensors: Mapping[str, Tensor], dialect: str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """One layer's tensors as a dialect spells them, and what it states beside them."""
    foreign, site = saved.config.adapter.foreign, saved.sites[path]
    column = 0 if dialect == "peft" else 1
    table = {**foreign.peft_tensors, **(foreign.peft_embedding if site.kind == "embedding" else {})}
    if column:
        table = dict(foreign.lycoris_tensors)
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if column and name in foreign.lycoris_minus:
            tensor = tensor - foreign.lycoris_minus[name]
        if column and name in foreign.lycoris_scaled and isinstance(saved.config, RankedConfig):
            tensor = tensor * saved.config.scale_at(site.path)
        tensor = tensor if dtype is None else tensor.to(dtype)
        layout = foreign.layouts.get(name, ("plain", "plain"))[column]
        parts[table[name].partition("/")[0]] = to_file(tensor, layout, site)
    if column:
        parts |= _stated(saved, foreign, site, tensors)
    return parts


def _stated(saved: Saved, foreign: Foreign, site: Site, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands beside the tensors in kohya's and LyCORIS' files: alpha, or which side a gain is on."""
    if foreign.inputs is not None:
        second = list(foreign.peft_tensors).index(next(iter(tensors))) == 1
        return {foreign.inputs[1]: torch.tensor(int(second))}
    if not isinstance(saved.config, RankedConfig):
        return {name: torch.tensor(value) for name, value in saved.stated.items()}
    rank = next((tensors[one].shape[0] for one in foreign.ranks if one in tensors), None)
    if rank is None:
        return {"alpha": torch.tensor(float(saved.config.rank_at(site.path)))}
    return {"alpha": torch.tensor(saved.config.scale_at(site.path) * rank, dtype=torch.float32)}
