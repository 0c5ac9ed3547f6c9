"""Saving an adapter: the same bytes for the same adapter, all of them or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.adapters import AdapterConfig, Site, adapters, state
from studio.adapters.contract.foreign import Foreign, Tables
from studio.adapters.contract.mixed import Mixed
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.hosting.attached import assemblies, check_known, check_unbaked
from studio.adapters.tokens.contract import TokenConfig
from studio.device import dtype_named, on_cpu
from studio.errors import BadConfig, DoesNotFit
from studio.families import is_pipeline
from studio.files.alphas import FORM, in_form
from studio.files.format import FORMATS, Draft, Format
from studio.files.header import DTYPES, payload_hash
from studio.files.layout import to_file
from studio.files.metadata import write_metadata
from studio.files.names import Names
from studio.files.scale import Grade, settle
from studio.files.soft import save_soft
from studio.files.source import PICKLED
from studio.given import given_path

__all__ = ["check_ending", "save", "spelled", "spelled_layers", "stored_dtype"]


def save(
    model: Any,
    file: str | Path,
    *,
    name: str = "default",
    format: str | None = None,
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Saves an adapter as one safetensors file, or as a PEFT folder.

    Two saves of one adapter are byte-identical, and so is saving what was loaded. The file appears only when it is
    complete.

    Args:
        model: any module, or a diffusers pipeline, that carries the adapter.
        file: where to; with ``format="peft"`` a folder.
        name: which adapter.
        format: "diffusers", "kohya" (also read by A1111 and ComfyUI), "native" (the names of those who trained the
            base, which ComfyUI and ai-toolkit write) or "peft"; of a language model "gguf" (llama.cpp) or "mlx" too.
            Layers that are one there are put together, exactly. None: "peft" for a path without an ending, "gguf" for
            one with that, else "diffusers".
        dtype: what the tensors are stored in, or its name (``"bf16"``); None: as they are, or as they were in the file
            that they came from.
        metadata: facts that go with it, texts by name: base, base_hash, trigger, seed, steps, dataset, licence,
            parents, title, ... Facts that a loaded adapter brought stay unless they are given anew.

    Returns:
        The file, or the folder.

    Raises:
        UnknownName: no adapter has that name, or no format. DoesNotFit: a blend is baked, the format cannot say what
            this adapter is, or studio.peft has trained something beside its layers. BadConfig: metadata that is not
            text, or an impossible dtype. BadFile: ``file`` is no path, or nothing can be written there (no space, no
            permission).

    Example:
        >>> import tempfile, torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> file = studio.save(net, Path(tempfile.mkdtemp()) / "dog.safetensors", metadata={"trigger": "sks dog"})
        >>> studio.inspect(file).facts
        {'trigger': 'sks dog'}
    """
    file = given_path(file)
    check_unbaked(model, "save")
    check_known(model, name)
    chosen = FORMATS[format if format is not None else _usual_format(model, file)]
    check_ending(file, chosen)
    _check_whole(model, name)
    info = adapters(model)[name]
    facts = {**info.metadata, **(metadata or {})}
    stored = stored_dtype(dtype, facts, info.trainable)
    if isinstance(info.config, TokenConfig):
        return save_soft(model, file, chosen, name, facts, stored)
    with on_cpu():
        draft, tensors = spelled(model, name, chosen, stored)
    tensors = in_form(tensors, facts.pop(FORM, ""))
    text = write_metadata(draft.config, facts, name=name, parts=draft.names.modules, payload=payload_hash(tensors))
    chosen.write(file, tensors, text, draft)
    return file


def check_ending(file: Path, format: Format) -> None:
    """Refuses a name by which a file would be taken for another sort of file when it is read.

    Args:
        file: where something is written. format: of what is written.

    Raises:
        BadConfig: it ends as a pickled file does, or as one of llama.cpp's, which it is not; or the other way round.
    """
    if format.folder:
        return
    ending = file.suffix.lower()
    if ending in PICKLED:
        raise BadConfig(f"{file.name} has the suffix of a pickled file, and what is written is safetensors: name it so")
    known = {one.suffix for one in FORMATS.values()}
    if (ending if ending in known else ".safetensors") != format.suffix:
        raise BadConfig(f"{file.name}: a {format.title} ends in {format.suffix}, and is read by that: name it so")


def _check_whole(model: Any, name: str) -> None:
    """Refuses an adapter of which a part stands beside its layers, where these formats have no place for it."""
    found = [one.records[name] for one in assemblies(model).values() if name in one.records]
    beside = [path for record in found for path in record.beside]
    if beside:
        more = f" and {len(beside) - 3} more" if beside[3:] else ""
        raise DoesNotFit(
            f"{name!r} has trained {', '.join(beside[:3])}{more} beside its layers, and a file of studio.save would "
            "leave that out; save_pretrained of its studio.peft model writes all of it"
        )


def spelled(model: Any, name: str, format: Format, dtype: torch.dtype | None = None) -> tuple[Draft, dict[str, Tensor]]:
    """Returns an adapter as a format has it, without writing it: what it is, and its tensors by key.

    Args:
        model: the model that carries it. name: which adapter. format: the format.
        dtype: what the tensors are brought to; None: as they are.

    Raises:
        UnknownName: no adapter has that name. DoesNotFit: the format cannot say what this adapter is.
    """
    check_known(model, name)
    info = adapters(model)[name]
    layers: Tables = {path: {} for path in sorted(info.sites)}
    for key, tensor in state(model, name).items():
        path, _, tensor_name = key.rpartition(".")
        layers[path][tensor_name] = tensor.detach()
    return spelled_layers(model, info.config, layers, format, dtype)


def spelled_layers(
    model: Any,
    config: AdapterConfig,
    layers: Mapping[str, Mapping[str, Tensor]],
    format: Format,
    dtype: torch.dtype | None = None,
) -> tuple[Draft, dict[str, Tensor]]:
    """As :func:`spelled`, of an adapter that need not be on the model.

    Args:
        model: what it is for. config: the method and its settings. layers: path -> tensor name -> tensor.
        format: the format. dtype: what the tensors are brought to; None: as they are.

    Raises:
        DoesNotFit: the format cannot say what this adapter is.
    """
    names = Names(model)
    names.chosen = frozenset(layers)
    layers = {path: tensors for path, tensors in layers.items() if tensors}  # a tied layer has none of its own
    if format.folder and len(config.members) > 1:
        raise DoesNotFit(
            f"a {format.title} holds one method, and this adapter is {config.label}; save with format='diffusers'"
        )
    drafts, tensors = list[Draft](), dict[str, Tensor]()
    for part in config.members:  # each method as it is by itself
        own = {path: one for path, one in layers.items() if config.at(names.paths[path][1]) is part}
        drafts.append(_draft(names, part, own, format))
        tensors |= _keyed(drafts[-1], format, dtype)
    return _together(drafts), tensors


def _draft(names: Names, config: AdapterConfig, layers: Mapping[str, Mapping[str, Tensor]], format: Format) -> Draft:
    """What a format is to hold of an adapter of one method."""
    config, layers = _plain(config, layers, format)
    sites = {path: names.site(path, config.adapter.kinds) for path in layers}
    draft = _settled(config, names, sites, layers, format)
    format.check(draft)
    return _as_stored(format.level(draft), format)


def _together(drafts: Sequence[Draft]) -> Draft:
    """Several methods in one file; one is the rule."""
    if len(drafts) == 1:
        return drafts[0]
    return Draft(
        Mixed(parts=tuple(draft.config for draft in drafts)),
        drafts[0].names,
        {path: site for draft in drafts for path, site in draft.sites.items()},
        {path: one for draft in drafts for path, one in draft.layers.items()},
    )


def _usual_format(model: Any, file: Path) -> str:
    if file.suffix.lower() == FORMATS["gguf"].suffix:
        return "gguf"
    known = is_pipeline(model) or file.suffix
    return "diffusers" if known else "peft"


def stored_dtype(dtype: torch.dtype | str | None, facts: dict[str, str], trainable: bool) -> torch.dtype | None:
    """Returns the dtype to store in; a fact "dtype" says what a file that was loaded had, and is taken out.

    Args:
        dtype: what was asked for, or its name. facts: of the adapter. trainable: whether it is trained.

    Raises:
        BadConfig: a dtype that cannot store an adapter.
    """
    loaded = facts.pop("dtype", None)
    if dtype is None:
        return None if trainable or loaded is None else DTYPES.get(loaded)
    if not isinstance(dtype, torch.dtype):
        dtype = dtype_named(dtype)
    if dtype not in DTYPES.values() or not dtype.is_floating_point:
        raise BadConfig(f"dtype={dtype} cannot store an adapter; use torch.float32, torch.bfloat16 or torch.float16")
    return dtype


def _plain(
    config: AdapterConfig, layers: Mapping[str, Mapping[str, Tensor]], format: Format
) -> tuple[AdapterConfig, Tables]:
    """Brings what other programs do not know (starts of two pairs, pruned ranks) to what they do, at the same scale."""
    adapter = config.adapter
    config, plain = adapter.to_save(config, layers)
    if adapter.lycoris.form is not None and format.dialect == "lycoris":
        return adapter.lycoris.form(config, plain)
    return config, plain


def _settled(config: AdapterConfig, names: Names, sites: Mapping[str, Site], layers: Tables, format: Format) -> Draft:
    """The adapter as this format states it: rank and scale of every layer are what a reader will find."""
    adapter = config.adapter
    if not isinstance(config, RankedConfig):
        return Draft(config, names, sites, layers)
    grades: dict[str, Grade] = {}
    unranked = adapter.lycoris.unranked if format.dialect == "lycoris" else ""
    for path, tensors in layers.items():
        site = sites[path]
        scale = config.scale_at(site.path)
        rank = next((tensors[one].shape[len(site.lead)] for one in adapter.ranks if one in tensors), None)
        if rank is None and unranked in tensors and scale != 1.0:
            layers = {**layers, path: {**tensors, unranked: tensors[unranked] * scale}}
            scale = 1.0
        grade = Grade(rank, scale)
        if grades.setdefault(site.path, grade) != grade:
            raise DoesNotFit(
                f"two components have a layer {site.path!r} with other ranks or alphas; save each by itself"
            )
    return Draft(settle(config, grades), names, sites, layers)


def _as_stored(draft: Draft, format: Format) -> Draft:
    """The adapter as the format's own program has the method."""
    form = format.form(draft.config.adapter)
    for path, site in draft.sites.items():
        reason = form.refusal(site) or form.differs(site)
        if reason:
            raise DoesNotFit(
                f"a {format.title} cannot hold {type(draft.config).__name__} on {path}: {reason}; save with "
                "format='diffusers'"
            )
    return dataclasses.replace(draft, layers=form.store(draft.config, draft.sites, draft.layers))


def _keyed(draft: Draft, format: Format, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors under the keys of the format."""
    keyed: dict[str, Tensor] = {}
    layers: Tables = {}
    peft = draft.config.adapter.peft
    common = {name: tensor for own in draft.layers.values() for name, tensor in own.items() if name in peft.shared}
    for path, tensors in draft.layers.items():
        module = format.spell(draft.names, path)
        for name in [name for name in peft.shared if name in tensors]:
            keyed[_dotted(format.root(draft.names, path), peft.shared[name])] = _narrowed(tensors[name], dtype)
        if format.peft and peft.repeated:
            keyed |= {_dotted(module, peft.shared[name]): _narrowed(one, dtype) for name, one in common.items()}
        own = {name: tensor for name, tensor in tensors.items() if name not in peft.shared}
        layers[path] = {
            peft.respelled.get(part, part) if format.respells else part: _narrowed(tensor, dtype)
            for part, tensor in _parts(draft, path, own, format.dialect).items()
        }
        if format.dialect == "lycoris":
            layers[path] |= _stated(draft, draft.sites[path], own)
    named = format.gather(draft.names, layers)
    if named is None:
        named = {format.spell(draft.names, path): parts for path, parts in layers.items()}
    return keyed | {_dotted(module, part): one for module, parts in named.items() for part, one in parts.items()}


def _dotted(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part


def _narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _parts(draft: Draft, path: str, tensors: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """One layer's tensors as a dialect spells them."""
    adapter, site = draft.config.adapter, draft.sites[path]
    form: Foreign = adapter.peft if dialect == "peft" else adapter.lycoris
    names = adapter.peft.names(site) if dialect == "peft" else adapter.lycoris.names(site)
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if dialect == "lycoris" and name in adapter.lycoris.minus:
            tensor = tensor - adapter.lycoris.minus[name]
        if dialect == "lycoris" and name in adapter.lycoris.scaled and isinstance(draft.config, RankedConfig):
            tensor = tensor * draft.config.scale_at(site.path)
        parts[names[name].partition("/")[0]] = to_file(tensor, form.layouts.get(name, "plain"), site)
    return parts


def _stated(draft: Draft, site: Site, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands beside the tensors in kohya's and LyCORIS' files: alpha, or which side a gain is on."""
    adapter = draft.config.adapter
    if adapter.either is not None:
        second = list(adapter.peft.tensors).index(next(iter(tensors))) == 1
        return {adapter.either.flag: torch.tensor(int(second))}
    if not isinstance(draft.config, RankedConfig):
        return {name: torch.tensor(value) for name, value in adapter.lycoris.beside.items()}
    rank = next((tensors[one].shape[0] for one in adapter.ranks if one in tensors), None)
    if rank is None:
        return {"alpha": torch.tensor(float(draft.config.rank_at(site.path)))}
    return {"alpha": torch.tensor(draft.config.scale_at(site.path) * rank, dtype=torch.float32)}
