"""attach and detach: adapters on and off a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from studio.adapters.bake import unbake
from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.calibration import Calibrate
from studio.adapters.contract.mixed import Mixed
from studio.adapters.contract.strength import Strength, StrengthLike, as_strength
from studio.adapters.hosting.assembly import Assembly, Record, assembly_at, site_at
from studio.adapters.hosting.attached import assemblies, check_known, check_unbaked, known_names, whole_path
from studio.adapters.hosting.mount import Adapters
from studio.adapters.hosting.turns import in_turn
from studio.adapters.info import split_path
from studio.adapters.sites.site import Site
from studio.adapters.start import check_sources, started
from studio.adapters.targets.find import search_targets
from studio.adapters.targets.silent import heard
from studio.adapters.targets.unmatched import check_blocks, check_tables
from studio.device import on_cpu
from studio.errors import BadConfig, DoesNotFit
from studio.families import check_open, named_parameters
from studio.families import components as components_of

__all__ = ["AttachReport", "attach", "check_name", "detach", "install"]

T = TypeVar("T")

_NAME: Final = re.compile(r"[\w-]{1,200}")


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did.

    Attributes:
        sites: paths of the adapted layers; with their component in front for a pipeline.
        parameters: numbers that the adapter trains.
        notes: what else is worth knowing: a layer whose weight another layer shares, a parameter that a pattern names
            beside layers.
    """

    sites: tuple[str, ...] = field(repr=False)
    parameters: int
    notes: tuple[str, ...] = field(default=(), repr=False)


def check_name(model: Any, name: str) -> None:
    """Checks that ``name`` can be given to a new adapter.

    Raises:
        BadConfig: other characters than letters, digits, ``_`` and ``-``, or more than 200. DoesNotFit: the name is
            taken.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadConfig(f"{name!r:.100} cannot name an adapter; use letters, digits, '_' and '-', at most 200 of them")
    if name in known_names(model):
        raise DoesNotFit(f"an adapter named {name!r} is attached already; give another name, or detach it first")


def _check_config(config: Any) -> None:
    """Checks that what is attached is a method's config."""
    if not isinstance(config, AdapterConfig):
        given = f"the class {config.__name__}; call it" if isinstance(config, type) else f"{config!r:.60}"
        raise BadConfig(f"attach takes the config of a method, such as studio.LoRA(rank=8), and was given {given}")
    whole = next((one for one in config.members if len(config.members) > 1 and one.adapter.kinds == ("model",)), None)
    if whole is not None:
        raise BadConfig(
            f"{whole.method} sits on a model as a whole and cannot be a part of {config.label}; attach it under a name "
            "of its own"
        )


def _device(site: Site) -> torch.device:
    """Where the adapter of a site lives: with its weight, or where offloading computes it."""
    hook = site.holder.__dict__.get("_hf_hook")
    wanted = getattr(hook, "execution_device", None)
    if site.device.type == "meta" and wanted is not None:
        return torch.device(wanted)
    return site.device


@torch.inference_mode(False)
def _owned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; one that inference mode has made could never be trained, so a copy stands for it."""
    moved = tensor.to(device)
    return moved.clone() if moved.is_inference() else moved


def _assembly(model: nn.Module, component: str) -> Assembly:
    """The assembly of a component, which goes by the name that the caller's pipeline has for it."""
    assembly = assembly_at(model) or Assembly(model, component)
    assembly.levels.component = component
    return assembly


def _built(
    root: nn.Module,
    component: str,
    config: AdapterConfig,
    sites: Mapping[str, Site],
    tensors: Mapping[str, Mapping[str, Tensor]],
    trained: bool,
) -> dict[str, Adapter]:
    """The layers of one method in a component, and those that take their tensors from them."""
    method, made = config.adapter, dict[str, Adapter]()
    joined = method.joined(root, list(sites))
    for path in (*sites, *(path for path in joined if path not in sites)):
        site = sites[path] if path in sites else site_at(root, path, method.kinds)
        own, device = tensors[whole_path(component, path)] if path in sites else {}, _device(site)
        moved = {key: _owned(tensor, device) for key, tensor in own.items()}
        with on_cpu(), torch.inference_mode(False):
            made[path] = method(site, config, moved, trainable=trained).train(site.module.training)
    method.link(made)
    return made


def _mount_all(
    model: Any,
    config: AdapterConfig,
    sites: Mapping[str, Mapping[str, Site]],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    name: str,
    strength: Strength,
    trained: bool,
    metadata: Mapping[str, str],
) -> list[Assembly]:
    """Builds all adapters first, then hosts them; on any error the model is as it was."""
    modules = components_of(model)
    built: list[tuple[Assembly, dict[str, Adapter]]] = []
    for component, found in sites.items():
        root, made = modules[component], dict[str, Adapter]()
        for member in config.members:
            own = {path: site for path, site in found.items() if config.at(path) is member}
            made |= _built(root, component, member, own, tensors, trained)
        built.append((_assembly(root, component), made))
    mounted: list[Assembly] = []
    try:
        for assembly, made in built:
            assembly.mount(name, made, Record(config, tuple(made), dict(metadata)))
            mounted.append(assembly)
            assembly.set({**assembly.levels.strengths, name: strength})
            if trained:
                assembly.freeze_base()
    except BaseException:
        for assembly in mounted:
            assembly.unmount(name)
        raise
    for module in modules.values() if trained else ():  # a component that gets nothing is part of the frozen base too
        if assembly_at(module) is None:
            mounted[0].freeze_beside(module)
    return mounted


@in_turn
def attach(
    model: Any,
    config: AdapterConfig,
    *,
    name: str = "default",
    seed: int = 0,
    components: Sequence[str] | None = None,
    calibrate: Calibrate | None = None,
    original: Any = None,
) -> AttachReport:
    """Attaches a new adapter, trainable and at strength 1, and freezes the base.

    Args:
        model: any module, or a diffusers pipeline.
        config: the method and its settings; ``config.targets`` says which layers it changes.
        name: its name, of letters, digits, ``_`` and ``-``.
        seed: what its start is drawn from; every layer draws from (seed, its path) alone.
        components: the components of a pipeline to adapt; None: those that the patterns name, or the denoiser where
            the targets are a preset.
        calibrate: what a start from data (LoRA's "eva" and "corda") is made from: a function that is given the model
            and runs it over data, or batches to call the model with (a tensor, a tuple of arguments, or a dict of named
            ones). The model is in evaluation mode meanwhile. Every position of an input counts, padding too.
        original: what LoRA's "loftq" makes up for: the same model before it was quantised.

    Returns:
        The adapted layers and the number of trained parameters.

    Raises:
        BadConfig: no config, an impossible name or rank, or a layer that two methods of one adapter name.
        DoesNotFit: the name is taken, a blend is baked, or the model is inside FSDP, or DDP of several processes.
        NoTargets: a pattern (of targets, exclude, ranks, block sizes, feed-forwards) that matches nothing.
        UnsupportedLayer: a layer that the method cannot change, or that no picture depends on.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        AttachReport(parameters=32)
        >>> print(studio.trainable(net))
        trainable params: 32 || all params: 104 || trainable%: 30.7692
    """
    _check_config(config)
    check_unbaked(model, "attach")
    check_open(model)
    check_name(model, name)
    check_sources(config, calibrate, original)
    components = (components,) if isinstance(components, str) else components
    modules = components_of(model)
    planned = [
        _planned(
            model,
            modules,
            one,
            components,
            seed,
            calibrate if one.data_driven else None,
            original if one.restores else None,
        )
        for one in config.members
    ]
    mounted = _mount_all(
        model, _joined(planned), _merged(one.sites for one in planned), _merged(one.tensors for one in planned),
        name=name, strength=Strength(), trained=True, metadata={},
    )  # fmt: skip
    return _report(mounted, name, [note for one in planned for note in one.notes])


@dataclass(frozen=True)
class _Planned:
    """One method of a new adapter: its config as planned, its layers by component and path, what they start with."""

    config: AdapterConfig
    sites: dict[str, dict[str, Site]]
    tensors: dict[str, dict[str, Tensor]]
    notes: Sequence[str]


def _planned(
    model: Any, modules: Mapping[str, nn.Module], config: AdapterConfig, components: Sequence[str] | None, seed: int,
    calibrate: Calibrate | None, original: Any,
) -> _Planned:  # fmt: skip
    """Finds the layers of a method and makes what each starts with."""
    method = config.adapter
    paths, notes = method.whole(modules, components), list[str]()
    if not paths:
        paths, beside = search_targets(
            modules, config.targets, config.exclude, chosen=components, kinds=method.kinds, method=type(config).__name__
        )
        paths, unheard = heard(modules, config.targets, paths)
        notes = [*beside, *unheard]
    sites: dict[str, dict[str, Site]] = {}
    for component, found in paths.items():
        joined, root = method.joined(modules[component], found), modules[component]
        sites[component] = {path: site_at(root, path, method.kinds) for path in found if path not in joined}
    check_tables(config, (path for found in sites.values() for path in found))
    config, tensors = started(model, config, sites, seed, calibrate, original)
    sites = {  # a plan may leave layers out
        component: kept
        for component, planned in sites.items()
        if (kept := {path: site for path, site in planned.items() if whole_path(component, path) in tensors})
    }
    return _Planned(config, sites, tensors, notes)


def _joined(planned: Sequence[_Planned]) -> AdapterConfig:
    """The config of the whole, whose parts name their layers by path; parts that are alike are one.

    Raises:
        BadConfig: two parts are of one method and of different settings, of which a file keeps one.
    """
    if len(planned) == 1:
        return planned[0].config
    paths: dict[str, list[str]] = {}
    parts: dict[str, AdapterConfig] = {}
    for one in planned:
        own = paths.setdefault(one.config.method, [])
        own += [path for found in one.sites.values() for path in found]
        part = dataclasses.replace(one.config, targets=tuple(dict.fromkeys(own)), exclude=())
        before = parts.setdefault(part.method, part)
        if dataclasses.replace(before, targets=part.targets) != part:
            raise BadConfig(f"two parts of one adapter are of the method {part.method}, with different settings")
        parts[part.method] = part
    return Mixed(parts=tuple(parts.values())) if len(parts) > 1 else next(iter(parts.values()))


def _merged(parts: Iterable[Mapping[str, Mapping[str, T]]]) -> dict[str, dict[str, T]]:
    merged: dict[str, dict[str, T]] = {}
    for part in parts:
        for key, found in part.items():
            merged.setdefault(key, {}).update(found)
    return merged


def _report(mounted: Sequence[Assembly], name: str, beside: Sequence[str] = ()) -> AttachReport:
    adapters = [adapter for assembly in mounted for _, adapter in assembly.adapters(name)]
    return AttachReport(
        sites=tuple(whole_path(one.component, path) for one in mounted for path in one.records[name].paths),
        parameters=sum(parameter.numel() for adapter in adapters for _, parameter in named_parameters(adapter)),
        notes=(*(note for assembly in mounted for note in _tied(assembly, name)), *beside),
    )


def _tied(assembly: Assembly, name: str) -> Iterator[str]:
    """Says of each adapted layer which other layers have the same weight: the adapter acts at the named one alone."""
    holders: dict[int, list[str]] = {}
    for path, parameter in named_parameters(assembly.root, but=Adapters):
        holders.setdefault(id(parameter), []).append(path)
    adapted = set(assembly.records[name].paths)
    for path, adapter in assembly.adapters(name):
        own = assembly.mounts[path].site
        held = own.module._parameters.get(own.weight_name)  # not made anew, as that of a quantised layer is
        shared = () if held is None else holders.get(id(held), ())
        others = {other.rpartition(".")[0] for other in shared} - {path, path.rpartition(".")[0]}
        if others and adapter.bakes and not adapter.tied:
            here = whole_path(assembly.component, path)
            names = ", ".join(whole_path(assembly.component, other) for other in sorted(others))
            both = "each has an adapter of its own" if others <= adapted else f"the adapter acts at {path} alone"
            yield f"{here} shares its weight with {names}: {both}; baking gives each its own"


@in_turn
def install(
    model: Any,
    config: AdapterConfig,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    name: str,
    strength: StrengthLike = 1.0,
    trainable: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Puts an adapter with given tensors on a model; what reading a file ends in.

    Args:
        model: any module, or a diffusers pipeline.
        config: the method and its settings.
        tensors: layer path (with its component in front for a pipeline) to tensor name to tensor.
        name: the adapter's name. strength: its strength in the blend.
        trainable: whether its tensors require gradients; the base is frozen then.
        metadata: what the file says about it.

    Raises:
        BadConfig: an impossible name, or a strength of blocks or components that are not there.
        DoesNotFit: a taken name, an unknown layer, a tensor of another shape, or a baked blend.
        UnsupportedLayer: a layer that the method cannot change.
    """
    check_unbaked(model, "load")
    check_name(model, name)
    modules = components_of(model)
    sites: dict[str, dict[str, Site]] = {}
    for whole in tensors:
        component, path = split_path(whole, modules)
        sites.setdefault(component, {})[path] = site_at(modules[component], path, config.at(path).adapter.kinds)
    wanted = as_strength(strength)
    found = {one: sites.get(one, {}).values() for one in {**assemblies(model), **sites}}
    check_blocks(name, wanted, {one: [place for site in some for place in site.places] for one, some in found.items()})
    _mount_all(
        model, config, sites, tensors, name=name, strength=wanted, trained=trainable, metadata=metadata or {}
    )  # fmt: skip


@in_turn
def detach(model: Any, name: str | None = None) -> None:
    """Takes adapters off; after the last one the base is bit for bit what it was.

    Args:
        model: the model or pipeline. name: the adapter; None takes all off (and unbakes first).

    Raises:
        UnknownName: no adapter has that name. DoesNotFit: a blend is baked, or another wrapper (FSDP) is outermost.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> before = dict(net.state_dict())
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> studio.detach(net)
        >>> list(net.state_dict()) == list(before), type(net[0]) is torch.nn.Linear
        (True, True)
    """
    if name is None:
        if any(assembly.baked is not None for assembly in assemblies(model).values()):
            unbake(model)
        for known in known_names(model):
            detach(model, known)
        return
    check_unbaked(model, "detach")
    check_known(model, name)
    for assembly in assemblies(model).values():
        if name in assembly.records:
            assembly.unmount(name)
