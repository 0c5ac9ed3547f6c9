"""The assembly: everything that is attached to one base, and the blend that acts on it.

One assembly belongs to one module (a component of a pipeline, or a model by itself) and stands in its ``__dict__``,
so that it is copied and pickled with it. It owns the hooks on the module: they notice an adapter that is active and
was never called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.host import Mount, check_removable, host, is_hosted, unhost
from studio.adapters.sites.gridsite import Held
from studio.adapters.sites.kinds import site_for
from studio.adapters.sites.parameter import BARE, ParameterSite, parameter_site
from studio.adapters.sites.site import AttentionSite, Site
from studio.errors import DoesNotFit, NoEffect, UnknownName, UnsupportedLayer, nearest
from studio.families import components

__all__ = [
    "Assembly",
    "Record",
    "assemblies",
    "assembly_at",
    "check_known",
    "check_unbaked",
    "known_names",
    "read_bias",
    "read_weight",
    "rows_of",
]

KEY: Final = "_studio_assembly"
_GIVEN: Final = ("past_key_values", "encoder_outputs")
"""Arguments that hold what an earlier call made: layers whose results are in them need not run again."""


@dataclass
class Record:
    """One adapter of an assembly: what it is and where it sits."""

    config: AdapterConfig
    paths: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)


class Assembly:
    """What is attached to ``root``.

    Args:
        root: the module.
        component: its name in the pipeline, ``""`` for a model by itself.
    """

    def __init__(self, root: nn.Module, component: str) -> None:
        self.root, self.component = root, component
        self.records: dict[str, Record] = {}
        self.mounts: dict[str, Mount] = {}
        self.strengths: dict[str, Strength] = {}
        self.by_path = False  # whether strengths differ from layer to layer
        self.rows: tuple[int, ...] | None = None
        self.baked: dict[str, Strength] | None = None
        self.originals: dict[str, list[Held]] = {}
        self.version = 0
        self.required_grad: list[str] | None = None
        self.frozen_beside: list[nn.Parameter] = []
        self._levels: dict[tuple[str, ...], Tensor] = {}
        self._handles: list[Any] = []
        self._resumes = False
        self._items: dict[str, Any] = {}  # path of an item of a list with adapters in it -> its hook
        self._ran: set[str] = set()

    # -- the blend ---------------------------------------------------------------------------------------------------

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets the blend; adapters that it does not name are off.

        Raises:
            BadConfig: a strength that means nothing for its method.
        """
        for name, strength in strengths.items():
            if name in self.records:
                self.records[name].config.adapter.check_strength(name, strength)
        self.strengths = dict(strengths)
        self.by_path = any(strength.blocks for strength in strengths.values())
        if self.by_path:
            self._index_levels()
        self.touch()

    def touch(self) -> None:
        """Makes every layer plan anew at its next call."""
        self.version += 1
        for key, levels in list(self._levels.items()):
            fresh = self._read_levels(key)
            if fresh.shape == levels.shape:
                levels.copy_(fresh)
            else:
                self._levels[key] = fresh.to(levels.device)

    def levels_at(self, path: str, names: tuple[str, ...]) -> Tensor:
        """Returns the strengths of the adapters ``names`` at a layer, ``(names,)`` or ``(rows, names)``.

        The tensor stays the same one and is written into, so that a compiled graph can read it.
        """
        return self._levels[(path, *names) if self.by_path else ("", *names)]

    def _read_levels(self, key: tuple[str, ...]) -> Tensor:
        path, *names = key
        found = [self.coefficient(name, path) for name in names]
        rows = next((level.shape[0] for level in found if isinstance(level, Tensor)), None)
        if rows is None:
            return torch.tensor(found)
        spread = [level if isinstance(level, Tensor) else torch.full((rows,), level) for level in found]
        return torch.stack(spread, dim=1)

    def _index_levels(self) -> None:
        """Makes the tensors of strengths that the present layers can ask for."""
        wanted: dict[tuple[str, ...], torch.device] = {}
        for path, mount in self.mounts.items():
            names = tuple(mount.adapters.names())
            if not names:
                continue  # an attention that only lets its output projection act
            device = mount.site.weight.device
            device = torch.device("cpu") if device.type == "meta" else device
            wanted.setdefault(("", *names), device)
            if self.by_path:
                wanted[(path, *names)] = device
        self._levels = {key: self._levels.get(key, self._read_levels(key).to(device)) for key, device in wanted.items()}

    def coefficient(self, name: str, path: str) -> float | Tensor:
        """Returns the strength of an adapter at a layer: a number, or one per row ``(rows,)``."""
        strength = None if self.baked is not None else self.strengths.get(name)
        if strength is None:
            return 0.0
        number, samples = strength.at(self.component, path), strength.per_sample()
        if samples is None:
            return number
        if self.rows is not None:
            if max(self.rows) >= len(samples):
                raise DoesNotFit(
                    f"sample_rows names sample {max(self.rows)}; the strength of {name!r} has {len(samples)} samples"
                )
            samples = samples[list(self.rows)]
        return samples * number

    # -- mounting ----------------------------------------------------------------------------------------------------

    def site(self, path: str, kinds: Collection[str] = ()) -> Site:
        """Returns the site at ``path``, hosted or not.

        Args:
            path: the layer. kinds: kinds that it may be besides an ordinary layer.

        Raises:
            DoesNotFit: there is no such layer, or it carries adapters of another model's assembly.
            UnsupportedLayer: it is of a class that cannot be adapted.
        """
        if path in self.mounts and "adapters" in self.mounts[path].site.module._modules:
            return self.mounts[path].site
        module = module_at(self.root, path)
        if module is None:
            bare = parameter_site(self.root, path, kinds)
            if bare is not None:
                return self._free(bare)
            known = [name for name, _ in self.root.named_modules()]
            raise DoesNotFit(f"the model has no layer {path!r}; the nearest are: {', '.join(nearest(path, known))}")
        if is_hosted(module):
            raise DoesNotFit(
                f"{path} already carries adapters that were attached through another module, or on parameters of its "
                "own; attach and detach all adapters of a layer through the same model"
            )
        return site_for(path, module, kinds)

    def _free(self, bare: ParameterSite) -> ParameterSite:
        """Checks that adapters can be put on a bare parameter beside what its owner carries."""
        beside = [mount.site for mount in self.mounts.values() if mount.site.module is bare.module]
        if is_hosted(bare.module) and not any(site.hosting == bare.hosting for site in beside):
            raise DoesNotFit(f"{bare.owner or 'the model'} carries adapters as a module; its parameters cannot as well")
        return bare

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
        self._watch_lists()
        self._index_levels()
        self.touch()

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
                self.mounts[above] = host(AttentionSite(above, parent, outputs_only=True), self)
            self.mounts[path] = host(site, self)
        return self.mounts[path]

    def unmount(self, name: str) -> None:
        """Takes one adapter out; layers that carry none are what they were."""
        for mount in self.mounts.values():
            check_removable(mount.site)
        record = self.records.pop(name)
        self.strengths.pop(name, None)
        self._sweep(name, record.paths)
        self._watch_lists()
        self._index_levels()
        self.touch()

    def _sweep(self, name: str, paths: Any) -> None:
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
        root.__dict__[KEY] = self
        self._handles.append(root.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        self._handles.append(root.register_forward_hook(self._end_call))
        for module in root.modules():  # a hook takes torch's encoder layer off the path that reads weights itself
            if isinstance(module, nn.TransformerEncoderLayer):
                self._handles.append(module.register_forward_pre_hook(_nothing))
        if callable(getattr(type(root), "save_pretrained", None)):
            root.__dict__["save_pretrained"] = functools.partial(_save_base, root)

    def _end_life(self) -> None:
        root = self.root
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        root.__dict__.pop(KEY, None)
        root.__dict__.pop("save_pretrained", None)
        if self.required_grad is not None:
            required = set(self.required_grad)
            for path, parameter in root.named_parameters():
                parameter.requires_grad_(path in required)
            self.required_grad = None
        for parameter in self.frozen_beside:
            parameter.requires_grad_(True)
        self.frozen_beside.clear()

    # -- the check that nothing is bypassed ----------------------------------------------------------------------------

    def _watch_lists(self) -> None:
        """Notices which items of a list run: a router calls some of its experts, training may drop whole layers."""
        wanted: dict[str, nn.Module] = {}
        for above, holder in {
            above: self._list_at(above) for path in self.mounts for above, _ in _splits(path)
        }.items():
            items = {} if holder is None else holder._modules
            wanted |= {_joined(above, name): item for name, item in items.items() if item is not None}
        for path in self._items.keys() - wanted.keys():
            self._items.pop(path).remove()
        for path in wanted.keys() - self._items.keys():
            self._items[path] = wanted[path].register_forward_pre_hook(functools.partial(self._note_item, path))

    def _list_at(self, path: str) -> nn.ModuleList | None:
        found = module_at(self.root, path)
        return found if isinstance(found, nn.ModuleList) else None

    def _note_item(self, path: str, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._ran.add(path)

    def _skipped(self, path: str) -> bool:
        """Whether a layer is in an item of a list that did not run, while another item of its class did."""
        for above, name in _splits(path):
            holder = self._list_at(above)
            if holder is not None and not self._has_run(_joined(above, name)):
                kind = _class_of(holder._modules[name])
                beside = [other for other, item in holder._modules.items() if _class_of(item) is kind]
                if any(self._has_run(_joined(above, other)) for other in beside):
                    return True
        return False

    def _has_run(self, item: str) -> bool:
        """Whether an item of a list was called, or a layer in it was."""
        inside = f"{item}."
        return item in self._ran or any(m.called and path.startswith(inside) for path, m in self.mounts.items())

    def _begin_call(self, root: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        if torch.compiler.is_compiling():
            return
        self._resumes = kwargs is not None and any(kwargs.get(name) is not None for name in _GIVEN)
        self._ran.clear()
        for mount in self.mounts.values():
            mount.seen |= mount.called  # by a part of the model, since the last call of the whole (generate's encoder)
            mount.called = False

    def _end_call(self, root: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.baked is not None or not self.strengths:
            return
        missed = [path for path, mount in self.mounts.items() if not mount.called and mount.acts()]
        if missed:  # of layers that hold one weight, some are there for the others alone (T5's "shared")
            reached = {id(mount.site.weight) for mount in self.mounts.values() if mount.called}
            missed = [path for path in missed if not self.mounts[path].follows(reached)]
        missed = [path for path in missed if not self._skipped(path)]
        for mount in self.mounts.values():
            mount.seen |= mount.called
        if self._resumes:
            missed = [path for path in missed if not self.mounts[path].seen]
        if missed:
            more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
            raise NoEffect(
                f"the adapters on {missed[0]}{more} are active, and {type(root).__name__} ran without calling that "
                "layer (fused projections, or code that reads the weight itself): they have no effect; exclude these "
                "layers, undo the fusion, or bake the blend"
            )

    # -- freezing ------------------------------------------------------------------------------------------------------

    def freeze_base(self) -> None:
        """Makes the base's parameters require no gradients; undone when the last adapter is gone."""
        own = {id(p) for mount in self.mounts.values() for p in mount.adapters.parameters()}
        base = [(path, p) for path, p in self.root.named_parameters() if id(p) not in own]
        if self.required_grad is None:
            self.required_grad = [path for path, parameter in base if parameter.requires_grad]
        for _, parameter in base:
            parameter.requires_grad_(False)

    def freeze_beside(self, module: nn.Module) -> None:
        """Freezes another component of the same pipeline, which carries nothing; undone in the same way."""
        required = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in required:
            parameter.requires_grad_(False)
        self.frozen_beside += required

    def adapters(self, name: str) -> Iterator[tuple[str, Adapter]]:
        """Iterates over the layers of one adapter: path and adapter."""
        for path in self.records[name].paths:
            yield path, cast(Adapter, self.mounts[path].adapters.get(name))


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """Splits a path at each of its words: what is above it, and the word."""
    words = path.split(".")
    for at, word in enumerate(words):
        yield ".".join(words[:at]), word


def _joined(above: str, name: str) -> str:
    return f"{above}.{name}" if above else name


def _class_of(module: nn.Module | None) -> type:
    return vars(type(module)).get("hosts", type(module))


def _nothing(module: nn.Module, args: Any) -> None:
    return None


def _save_base(root: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``save_pretrained`` of the base without the adapters in it (they are saved by ``studio.save``)."""

    def without_adapters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key[len(prefix) :] in own]:
            del state[key]

    assembly: Assembly = root.__dict__[KEY]
    own = {f"{mount.place}.{key}" for mount in assembly.mounts.values() for key in mount.adapters.state_dict()}
    handle = root.register_state_dict_post_hook(without_adapters)
    try:
        return cast(Any, type(root)).save_pretrained(root, *args, **kwargs)
    finally:
        handle.remove()


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """Returns the module at ``path``, or None; ten times faster than ``get_submodule``, which asks ``__getattr__``."""
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = None if module is None else module._modules.get(part)
    return module


def assembly_at(module: nn.Module) -> Assembly | None:
    """Returns the assembly of a module, or None where nothing is attached to it."""
    return cast("Assembly | None", module.__dict__.get(KEY))


def assemblies(model: Any) -> dict[str, Assembly]:
    """Returns the assemblies of a model or pipeline by component; components that carry nothing are left out."""
    found = {}
    for name, module in components(model).items():
        assembly = assembly_at(module)
        if assembly is not None:
            found[name] = assembly
    return found


def known_names(model: Any) -> list[str]:
    """Returns the names of the adapters on ``model``, in the order in which they were attached."""
    names: dict[str, None] = {}
    for assembly in assemblies(model).values():
        names.update(dict.fromkeys(assembly.records))
    return list(names)


def check_known(model: Any, name: str) -> None:
    """Checks that an adapter is there.

    Raises:
        UnknownName: there is none of that name.
    """
    known = known_names(model)
    if name not in known:
        close = nearest(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(f"no adapter is named {name!r}{hint} (attached: {', '.join(known) or 'none'})")


def check_unbaked(model: Any, doing: str) -> None:
    """Checks that no blend is baked into the weights.

    Raises:
        DoesNotFit: one is.
    """
    for assembly in assemblies(model).values():
        if assembly.baked is not None:
            raise DoesNotFit(f"cannot {doing}: a blend is baked into the weights; call unbake first")


def read_weight(site: Site) -> Tensor:
    """Returns the base's weight in matrix form ``(rows, cols)`` in fp32, fetched where offloading keeps it away.

    Raises:
        DoesNotFit: the weight has no values (a model on the meta device).
    """
    return _read(site, lambda: site.matrix(site.weight.detach()).float())


def read_bias(site: Site) -> Tensor | None:
    """Returns the base's bias in fp32, fetched where offloading keeps it away, or None where the layer has none.

    Raises:
        DoesNotFit: the bias has no values (a model on the meta device).
    """
    return None if site.bias is None else _read(site, lambda: cast(Tensor, site.bias).detach().float())


def _read(site: Site, take: Callable[[], Tensor]) -> Tensor:
    if site.weight.device.type == "meta":
        from accelerate.utils import align_module_device

        with align_module_device(site.module):
            if site.weight.device.type == "meta":
                raise DoesNotFit(f"{site.path} is on the meta device: it has no values that this start could use")
            return take().clone()
    return take()


@contextmanager
def rows_of(model: Any, rows: Sequence[int] | None) -> Iterator[None]:
    """Sets which sample every row of a batch belongs to, while the context lasts."""
    found = list(assemblies(model).values())
    before = [assembly.rows for assembly in found]
    for assembly in found:
        assembly.rows = None if rows is None else tuple(int(row) for row in rows)
        assembly.touch()
    try:
        yield
    finally:
        for assembly, old in zip(found, before, strict=True):
            assembly.rows = old
            assembly.touch()
