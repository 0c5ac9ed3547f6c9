"""The assembly: everything that is attached to one base, and the blend that acts on it.

One assembly belongs to one module (a component of a pipeline, or a model by itself) and stands in its ``__dict__``,
so that it is copied and pickled with it. While anything is attached, the base's own parameters can be frozen, and
``save_pretrained`` leaves the adapters out, but for a trainer's checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import nn

from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.host import check_removable, host, is_hosted, unhost
from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.mount import Adapters, Mount
from studio.adapters.hosting.watch import Watch
from studio.adapters.sites.kinds import site_for
from studio.adapters.sites.parameter import BARE, ParameterSite, parameter_site
from studio.adapters.sites.read import module_at
from studio.adapters.sites.site import AttentionSite, Site
from studio.errors import DoesNotFit, UnsupportedLayer, nearest
from studio.families import check_own, named_parameters, named_parts
from studio.quantization.backend import Held, Undo, packing_of

__all__ = ["Assembly", "Record", "assembly_at", "site_at"]

_KEY: Final = "_studio_assembly"
_OF_TRAINER: Final = {"state_dict", "is_main_process"}  # what its checkpoints say to ``save_pretrained``, together


@dataclass
class Record:
    """One adapter of an assembly: what it is and where it sits.

    Attributes:
        config: its config. paths: of its layers. metadata: what its file said about it.
        beside: paths of what is trained with it and is no tensor of its layers, so that who put it there saves it.
    """

    config: AdapterConfig
    paths: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


class Assembly:
    """What is attached to ``root``.

    Args:
        root: the module.
        component: its name in the pipeline, ``""`` for a model by itself.

    Attributes:
        levels: how strongly each adapter acts. records: adapter name -> what is noted about it.
        mounts: path -> what the layer there keeps. originals: path -> what baking took out of the layer.
    """

    def __init__(self, root: nn.Module, component: str) -> None:
        self.root, self.levels = root, Levels(component)
        self.records: dict[str, Record] = {}
        self.mounts: dict[str, Mount] = {}
        self.originals: dict[str, list[Held]] = {}
        self._required_grad: list[str] | None = None
        self._frozen_beside: list[nn.Parameter] = []
        self._watch: Watch | None = None
        self._kept_trainable: list[Undo] = []

    @property
    def component(self) -> str:
        """The base's name in its pipeline, ``""`` for a model by itself."""
        return self.levels.component

    @property
    def baked(self) -> dict[str, Strength] | None:
        """The blend that is folded into the weights, or None."""
        return self.levels.baked

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets the blend; adapters that it does not name are off.

        Raises:
            BadConfig: a strength that means nothing for its method.
            DoesNotFit: the samples of a batch have blends of their own by now.
        """
        if self.levels.samples is not None:
            raise DoesNotFit("a batch is being computed whose samples have blends of their own; wait for its end")
        for name, strength in strengths.items():
            if name in self.records:
                self._check_strength(name, strength)
        self.levels.set(strengths)

    def set_samples(self, blends: Sequence[Mapping[str, Strength]]) -> None:
        """Sets the blend of each sample of a batch.

        Raises:
            BadConfig: a strength that means nothing for its method.
        """
        here = [{name: one[name] for name in one if name in self.records} for one in blends]
        for blend in here:
            for name, strength in blend.items():
                self._check_strength(name, strength)
        self.levels.samples = tuple(here)
        self.levels.touch()

    def _check_strength(self, name: str, strength: Strength) -> None:
        for member in self.records[name].config.members:
            member.adapter.check_strength(name, strength)

    # -- mounting ----------------------------------------------------------------------------------------------------

    def mount(self, name: str, adapters: Mapping[str, Adapter], record: Record) -> None:
        """Hosts the adapters, all or none.

        Args:
            name: the adapter's name.
            adapters: path to adapter.
            record: what is noted about it.
        """
        try:
            if not self.mounts:
                self._begin_life()
            for adapter in adapters.values():
                self._mount_one(adapter).adapters.add(name, adapter)
        except BaseException:
            self._sweep(name, adapters)
            raise
        self.records[name] = record
        self._index()

    def _mount_one(self, adapter: Adapter) -> Mount:
        site, path = adapter.site, adapter.site.path
        if site.kind in BARE and (adapter.dropout or not adapter.bakes):
            raise UnsupportedLayer(
                f"{path} is a bare parameter, which has no input to drop and no output to change: "
                f"{type(adapter.config).__name__} acts on it without dropout, and only if it changes weights"
            )
        above, _, last = path.rpartition(".")
        parent = module_at(self.root, above) if last == "out_proj" else None
        if isinstance(parent, nn.MultiheadAttention) and not adapter.bakes:
            raise UnsupportedLayer(
                f"{path} is read by its MultiheadAttention, which never calls it: {type(adapter.config).__name__} "
                "changes what a layer returns and cannot act there; exclude it"
            )
        if path not in self.mounts:
            if isinstance(parent, nn.MultiheadAttention) and above not in self.mounts:
                # only the attention itself can make its output projection act
                self.mounts[above] = host(AttentionSite(above, parent, outputs_only=True), self.levels)
            self.mounts[path] = host(site, self.levels)
        return self.mounts[path]

    def unmount(self, name: str) -> None:
        """Takes one adapter out; layers that carry none are what they were.

        Raises:
            DoesNotFit: another wrapper (FSDP) holds the layers, or the adapter's parameters.
        """
        for _, adapter in self.adapters(name):
            check_own(adapter, "detach")
        for mount in self.mounts.values():
            check_removable(mount.site)
        record = self.records.pop(name)
        self.levels.drop(name)
        self._sweep(name, record.paths)
        self._index()

    def _index(self) -> None:
        """Tells the watch and the levels which layers carry what now."""
        if self._watch is not None:
            self._watch.index()
        carriers = {}
        for path, mount in self.mounts.items():
            names = tuple(mount.adapters.names())
            if names:  # an attention that only lets its output projection act has none
                device = mount.site.device
                carriers[path] = names, torch.device("cpu") if device.type == "meta" else device
        self.levels.index(carriers, tuple(self.records))

    def _sweep(self, name: str, paths: Iterable[str]) -> None:
        for path in paths:
            mount = self.mounts.get(path)
            if mount is not None and name in mount.adapters.names():
                mount.adapters.remove(name)
        for path, mount in reversed(list(self.mounts.items())):
            if not mount.adapters.names() and not self._chaperones(path):
                unhost(mount.site)
                del self.mounts[path]
        if not self.mounts:
            self._end_life()

    def _chaperones(self, path: str) -> bool:
        below = f"{path}.out_proj" if path else "out_proj"
        return below in self.mounts and isinstance(self.mounts[path].site, AttentionSite)

    def _begin_life(self) -> None:
        root = self.root
        root.__dict__[_KEY] = self
        self._kept_trainable = _made_trainable(root)
        self._watch = Watch(root, self.mounts, self.levels)
        if callable(getattr(type(root), "save_pretrained", None)):
            root.__dict__["save_pretrained"] = functools.partial(_save_base, root)

    def _end_life(self) -> None:
        root = self.root
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        root.__dict__.pop(_KEY, None)
        root.__dict__.pop("save_pretrained", None)
        while self._kept_trainable:
            self._kept_trainable.pop()()
        if self._required_grad is not None:
            required = set(self._required_grad)
            for path, parameter in named_parameters(root):
                parameter.requires_grad_(path in required)
            self._required_grad = None
        for parameter in self._frozen_beside:
            parameter.requires_grad_(True)
        self._frozen_beside.clear()

    # -- freezing ------------------------------------------------------------------------------------------------------

    def freeze_base(self) -> None:
        """Makes the base's parameters require no gradients; undone when the last adapter is gone."""
        base = list(named_parameters(self.root, but=Adapters))
        if self._required_grad is None:
            self._required_grad = [path for path, parameter in base if parameter.requires_grad]
        for _, parameter in base:
            parameter.requires_grad_(False)

    def freeze_beside(self, module: nn.Module) -> None:
        """Freezes another component of the same pipeline, which carries nothing; undone in the same way."""
        required = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in required:
            parameter.requires_grad_(False)
        self._frozen_beside += required

    def places(self, name: str) -> list[str]:
        """Returns the paths by which a strength can name the layers of an adapter; none where it is not here."""
        paths = self.records[name].paths if name in self.records else ()
        return [place for path in paths for place in self.mounts[path].site.places]

    def adapters(self, name: str) -> Iterator[tuple[str, Adapter]]:
        """Iterates over the layers of one adapter: path and adapter."""
        for path in self.records[name].paths:
            yield path, cast(Adapter, self.mounts[path].adapters.get(name))

    def by_method(self, name: str) -> Iterator[tuple[type[Adapter], dict[str, Adapter]]]:
        """Iterates over the methods of one adapter: the method's class and its layers, path -> adapter."""
        config, layers = self.records[name].config, dict(self.adapters(name))
        for member in config.members:
            yield member.adapter, {path: one for path, one in layers.items() if config.at(path) is member}


def _made_trainable(root: nn.Module) -> list[Undo]:
    """Lets gradients go through all quantised layers, those that carry nothing too; returns what ends that."""
    undone = []
    for _, module in named_parts(root):
        packing = packing_of(module)
        undo = None if packing is None else packing.make_trainable(module)
        if undo is not None:
            undone.append(undo)
    return undone


def _save_base(root: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``save_pretrained`` of the base without the adapters in it (they are saved by ``studio.save``).

    A checkpoint of transformers' ``Trainer`` keeps them, under the keys that they have in ``state_dict()``: nothing
    else there holds what was trained, and resuming and reloading the best model fill a model that has them attached.
    """
    if kwargs.keys() >= _OF_TRAINER:
        return cast(Any, type(root)).save_pretrained(root, *args, **kwargs)

    def without_adapters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key[len(prefix) :].startswith(own)]:
            del state[key]

    assembly: Assembly = root.__dict__[_KEY]
    kept = {id(mount.adapters) for mount in assembly.mounts.values()}
    own = tuple(f"{name}." for name, module in root.named_modules() if id(module) in kept)  # wrappers in it included
    handle = root.register_state_dict_post_hook(without_adapters)
    try:
        return cast(Any, type(root)).save_pretrained(root, *args, **kwargs)
    finally:
        handle.remove()


def assembly_at(module: nn.Module) -> Assembly | None:
    """Returns the assembly of a module, or None where nothing is attached to it."""
    return cast("Assembly | None", module.__dict__.get(_KEY))


def site_at(root: nn.Module, path: str, kinds: Collection[str] = ()) -> Site:
    """Returns the site at ``path`` of ``root``: the one that carries adapters there, or a new one.

    Args:
        root: the model. path: the layer. kinds: kinds that it may be besides an ordinary layer.

    Raises:
        DoesNotFit: there is no such layer, or it carries adapters of another model's assembly.
        UnsupportedLayer: it is of a class that cannot be adapted.

    Example:
        >>> site_at(nn.Sequential(nn.Linear(4, 2)), "0")
        <linear site 0: 2x4>
    """
    assembly = assembly_at(root)
    mounts = {} if assembly is None else assembly.mounts
    if path in mounts and "adapters" in mounts[path].site.module._modules:
        return mounts[path].site
    module = module_at(root, path)
    if module is None:
        bare = parameter_site(root, path, kinds)
        if bare is not None:
            _check_free(bare, [mount.site for mount in mounts.values() if mount.site.module is bare.module])
            return bare
        known = [name for name, _ in named_parts(root)]
        raise DoesNotFit(f"the model has no layer {path!r}; the nearest are: {', '.join(nearest(path, known))}")
    if is_hosted(module):
        raise DoesNotFit(
            f"{path} already carries adapters that were attached through another module, or on parameters of its "
            "own; attach and detach all adapters of a layer through the same model"
        )
    return site_for(path, module, kinds)


def _check_free(bare: ParameterSite, beside: Iterable[Site]) -> None:
    """Checks that adapters can be put on a bare parameter beside what its owner carries."""
    if is_hosted(bare.module) and not any(site.hosting == bare.hosting for site in beside):
        raise DoesNotFit(f"{bare.owner or 'the model'} carries adapters as a module; its parameters cannot as well")
