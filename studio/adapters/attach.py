"""attach and detach: adapters on and off a model; and what is on it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters.bake import unbake
from studio.adapters.contract.adapter import Adapter, AdapterConfig, Given, generator_for
from studio.adapters.contract.calibration import Calibrate, Gauge, measured
from studio.adapters.contract.pattern import matches
from studio.adapters.contract.strength import Strength, StrengthLike, as_strength
from studio.adapters.hosting.assembly import (
    Assembly,
    Record,
    assemblies,
    assembly_at,
    check_known,
    check_unbaked,
    known_names,
    read_bias,
    read_weight,
)
from studio.adapters.sites.quantized import GroupQuantizedLinear
from studio.adapters.sites.site import Site
from studio.adapters.targets.find import find_targets
from studio.errors import BadConfig, DoesNotFit
from studio.families import components as components_of

__all__ = [
    "AdapterInfo",
    "AttachReport",
    "TrainableReport",
    "adapters",
    "attach",
    "detach",
    "install",
    "site_of",
    "state",
    "trainable",
]

_NAME: Final = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did.

    Attributes:
        sites: paths of the adapted layers; with their component in front for a pipeline.
        parameters: numbers that the adapter trains.
        notes: what else is worth knowing: a layer whose weight another layer shares.
    """

    sites: tuple[str, ...]
    parameters: int
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False)


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter on a model.

    Attributes:
        name: its name. method: registry name of its method. config: its config.
        sites: paths of the layers that it changes. parameters: numbers in its tensors.
        strength: its strength in the current blend, 0.0 when it is off.
        trainable: whether its tensors require gradients. baked: whether it is folded into the weights now.
        metadata: what its file said about it.
    """

    name: str
    method: str
    config: AdapterConfig
    sites: tuple[str, ...]
    parameters: int
    strength: float | Strength
    trainable: bool
    baked: bool
    metadata: dict[str, str]


@dataclass(frozen=True)
class TrainableReport:
    """How much of a model is trained.

    Attributes:
        trainable: numbers that require gradients. total: all numbers, adapters included.

    Example:
        >>> print(TrainableReport(8, 100))
        trainable params: 8 || all params: 100 || trainable%: 8.0000
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trainable / self.total if self.total else 0.0
        return f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {percent:.4f}"


def check_name(model: Any, name: str) -> None:
    """Checks that ``name`` can be given to a new adapter.

    Raises:
        BadConfig: other characters than letters, digits, ``_`` and ``-``. DoesNotFit: the name is taken.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadConfig(f"{name!r} cannot name an adapter; use letters, digits, '_' and '-'")
    if name in known_names(model):
        raise DoesNotFit(f"an adapter named {name!r} is attached already; give another name, or detach it first")


def _join(component: str, path: str) -> str:
    return ".".join(part for part in (component, path) if part)


def _device(site: Site) -> torch.device:
    """Where the adapter of a site lives: with its weight, or where offloading computes it."""
    hook = site.holder.__dict__.get("_hf_hook")
    wanted = getattr(hook, "execution_device", None)
    if site.weight.device.type == "meta" and wanted is not None:
        return torch.device(wanted)
    return site.weight.device


def _mount_all(
    model: Any,
    config: AdapterConfig,
    paths: Mapping[str, Sequence[str]],
    make: Callable[[str, Site], Mapping[str, Tensor]],
    *,
    name: str,
    strength: Strength,
    trained: bool,
    metadata: Mapping[str, str] | None,
) -> list[Assembly]:
    """Builds all adapters first, then hosts them; on any error the model is as it was."""
    modules = components_of(model)
    built: list[tuple[Assembly, dict[str, Adapter]]] = []
    for component, wanted in paths.items():
        assembly = assembly_at(modules[component]) or Assembly(modules[component], component)
        assembly.component = component
        made: dict[str, Adapter] = {}
        joined = config.adapter.joined(modules[component], wanted)
        for path in (*wanted, *(path for path in joined if path not in wanted)):
            site = assembly.site(path, config.adapter.kinds)
            tensors, device = make(component, site) if path in wanted else {}, _device(site)
            moved = {key: tensor.to(device) for key, tensor in tensors.items()}
            adapter = config.adapter(site, config, moved, trainable=trained)
            adapter.train(site.module.training)
            made[path] = adapter
        config.adapter.link(made)
        built.append((assembly, made))
    mounted: list[Assembly] = []
    try:
        for assembly, made in built:
            record = Record(config, tuple(made), dict(metadata or {}))
            assembly.mount(name, made, record)
            mounted.append(assembly)
            assembly.set({**assembly.strengths, name: strength})
            if trained:
                assembly.freeze_base()
    except BaseException:
        for assembly in mounted:
            assembly.unmount(name)
        raise
    return mounted


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
        BadConfig: an impossible name or rank. DoesNotFit: the name is taken, or a blend is baked.
        NoTargets: a target that matches nothing. UnsupportedLayer: a layer that the method cannot change.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        AttachReport(sites=('0',), parameters=32)
        >>> print(studio.trainable(net))
        trainable params: 32 || all params: 104 || trainable%: 30.7692
    """
    check_unbaked(model, "attach")
    check_name(model, name)
    _check_sources(config, calibrate, original)
    modules = components_of(model)
    paths = config.adapter.whole(modules, components) or find_targets(
        modules, config.targets, config.exclude, chosen=components, kinds=config.adapter.kinds,
        method=type(config).__name__,
    )  # fmt: skip
    for component, found in paths.items():
        joined = config.adapter.joined(modules[component], found)
        paths[component] = [path for path in found if path not in joined]

    config, tensors = _start(model, config, paths, seed, calibrate, original)
    paths = {  # a plan may leave layers out
        component: kept
        for component, found in paths.items()
        if (kept := [path for path in found if _join(component, path) in tensors])
    }
    mounted = _mount_all(
        model, config, paths, lambda component, site: tensors[_join(component, site.path)], name=name,
        strength=Strength(), trained=True, metadata=None,
    )  # fmt: skip
    for module in modules.values():  # a component that gets nothing is part of the frozen base too
        if assembly_at(module) is None:
            mounted[0].freeze_beside(module)
    count = sum(
        parameter.numel()
        for assembly in mounted
        for _, adapter in assembly.adapters(name)
        for parameter in adapter.parameters()
    )
    sites = tuple(_join(assembly.component, path) for assembly in mounted for path in assembly.records[name].paths)
    notes = tuple(note for assembly in mounted for note in _tied(assembly, name))
    return AttachReport(sites, count, notes)


def _tied(assembly: Assembly, name: str) -> Iterator[str]:
    """Says of each adapted layer which other layers have the same weight: the adapter acts at the named one alone."""
    holders: dict[int, list[str]] = {}
    for path, parameter in assembly.root.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(path)
    adapted = set(assembly.records[name].paths)
    for path, adapter in assembly.adapters(name):
        own = assembly.mounts[path].site
        shared = holders.get(id(own.weight), ()) if own.weight_name in own.module._parameters else ()
        others = {other.rpartition(".")[0] for other in shared} - {path, path.rpartition(".")[0]}
        if others and adapter.bakes and not adapter.tied:
            names = ", ".join(_join(assembly.component, other) for other in sorted(others))
            both = "each has an adapter of its own" if others <= adapted else f"the adapter acts at {path} alone"
            yield f"{_join(assembly.component, path)} shares its weight with {names}: {both}; baking gives each its own"


@torch.no_grad()
def _start(
    model: Any,
    config: AdapterConfig,
    paths: Mapping[str, Sequence[str]],
    seed: int,
    calibrate: Calibrate | None,
    original: Any,
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Decides what is decided over all layers, then makes the tensors of each; keys have the component in front."""
    method, modules = config.adapter, components_of(model)
    found: dict[str, dict[str, Site]] = {}
    given: dict[str, Given] = {}
    for component, wanted in paths.items():
        assembly = assembly_at(modules[component]) or Assembly(modules[component], component)
        found[component] = {path: assembly.site(path, method.kinds) for path in wanted}
        for path, site in found[component].items():
            whole = _join(component, path)
            given[whole] = Given(
                functools.partial(read_weight, site),
                generator_for(seed, whole),
                original=None if original is None else functools.partial(_original_weight, original, whole),
                bias=functools.partial(read_bias, site),
            )
    everything = {_join(component, path): site for component, sites in found.items() for path, site in sites.items()}
    for whole, gauge in _measured(model, config, everything, calibrate).items():
        given[whole] = dataclasses.replace(given[whole], inputs=gauge)
    config = method.plan(everything, config, given)
    if config.exclude:  # a plan may leave layers out
        found = {component: _without(sites, config.exclude) for component, sites in found.items()}
    tensors: dict[str, dict[str, Tensor]] = {}
    for component, sites in found.items():
        shared = method.common(sites, config)
        for path, site in sites.items():
            whole = _join(component, path)
            tensors[whole] = {**method.start(site, config, given[whole]), **shared}
            shared = {}
    return config, tensors


def _check_sources(config: AdapterConfig, calibrate: Calibrate | None, original: Any) -> None:
    """Checks that the start gets what it is made from, and nothing that it would ignore."""
    words = f"{type(config).__name__}(init={config.init!r})" if hasattr(config, "init") else type(config).__name__
    if config.data_driven and calibrate is None:
        raise BadConfig(f"{words} starts from data: pass calibrate=, batches or a function that runs the model on them")
    if calibrate is not None and not config.data_driven:
        raise BadConfig(f"calibrate is given, and {words} does not start from data: leave it out")
    if config.restores and original is None:
        raise BadConfig(
            f"{words} makes up for what quantisation took from a base: quantise it with studio.quantize, and pass the "
            "model as it was before, attach(model, ..., original=...)"
        )
    if original is not None and not config.restores:
        raise BadConfig(f"original is given, and {words} does not use it: leave it out")


def _without(sites: Mapping[str, Site], exclude: Sequence[str]) -> dict[str, Site]:
    return {path: site for path, site in sites.items() if not any(matches(pattern, path) for pattern in exclude)}


def _measured(
    model: Any, config: AdapterConfig, sites: Mapping[str, Site], calibrate: Calibrate | None
) -> dict[str, Gauge]:
    """Measures the inputs of layers where the start is made from them."""
    if calibrate is None:
        return {}
    return measured(model, sites, {path: config.gauge(site) for path, site in sites.items()}, calibrate)


def _original_weight(original: Any, whole: str) -> Tensor:
    return read_weight(site_of(original, whole))


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
        BadConfig: an impossible name. DoesNotFit: a taken name, an unknown layer, a tensor of another shape, or a
            baked blend. UnsupportedLayer: a layer that the method cannot change.
    """
    check_unbaked(model, "load")
    check_name(model, name)
    modules = components_of(model)
    paths: dict[str, list[str]] = {}
    for whole in tensors:
        component, _, path = whole.partition(".") if "" not in modules else ("", "", whole)
        if component not in modules:
            raise DoesNotFit(f"{whole!r} names no component of the model; it has {', '.join(modules)}")
        paths.setdefault(component, []).append(path)
    _mount_all(
        model,
        config,
        paths,
        lambda component, site: tensors[_join(component, site.path)],
        name=name,
        strength=as_strength(strength),
        trained=trainable,
        metadata=metadata,
    )


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


def adapters(model: Any) -> dict[str, AdapterInfo]:
    """Returns what is attached to ``model``, by name, in the order of attaching.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> info = studio.adapters(net)["dog"]
        >>> info.method, info.sites, info.strength
        ('lora', ('0',), 1.0)
    """
    found = {}
    for name in known_names(model):
        sites: list[str] = []
        count, requires = 0, False
        for component, assembly in assemblies(model).items():
            if name not in assembly.records:
                continue
            record, current = assembly.records[name], assembly
            for path, adapter in assembly.adapters(name):
                sites.append(_join(component, path))
                count += sum(tensor.numel() for tensor in adapter.tensors().values())
                requires = requires or adapter.trainable
        acting = current.strengths if current.baked is None else current.baked
        strength = acting.get(name, Strength(0.0))
        number = strength.value if strength == Strength(strength.value) else strength
        baked = current.baked is not None and name in current.baked
        info = AdapterInfo(
            name, record.config.method, record.config, tuple(sites), count, number, requires, baked, record.metadata
        )
        found[name] = info
    return found


def trainable(model: Any) -> TrainableReport:
    """Counts the parameters of ``model`` that require gradients, and all of them; tied ones once."""
    unique = {id(p): p for module in components_of(model).values() for p in module.parameters()}
    numbers = [(parameter.numel(), parameter.requires_grad) for parameter in unique.values()]
    codes = sum(
        layer.in_features * layer.out_features
        for module in components_of(model).values()
        for layer in module.modules()
        if isinstance(layer, GroupQuantizedLinear) and layer.dense is None
    )
    return TrainableReport(sum(n for n, required in numbers if required), codes + sum(n for n, _ in numbers))


def state(model: Any, name: str = "default") -> dict[str, Tensor]:
    """Returns the live tensors of an adapter under ``"<path>.<tensor>"``, in sorted order.

    Raises:
        UnknownName: no adapter has that name.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> {key: tuple(tensor.shape) for key, tensor in studio.state(net).items()}
        {'0.down': (2, 8), '0.up': (8, 2)}
    """
    check_known(model, name)
    found = {}
    for component, assembly in assemblies(model).items():
        if name in assembly.records:
            for path, adapter in assembly.adapters(name):
                for key, tensor in adapter.tensors().items():
                    found[f"{_join(component, path)}.{key}".lstrip(".")] = tensor
    return dict(sorted(found.items()))


def site_of(model: Any, path: str) -> Site:
    """Returns the site at ``path`` (with its component in front for a pipeline).

    Raises:
        DoesNotFit: there is no such layer. UnsupportedLayer: it cannot be adapted.
    """
    modules = components_of(model)
    component, _, rest = path.partition(".") if "" not in modules else ("", "", path)
    if component not in modules:
        raise DoesNotFit(f"{path!r} names no component of the model; it has {', '.join(modules)}")
    module: nn.Module = modules[component]
    return (assembly_at(module) or Assembly(module, component)).site(rest)
