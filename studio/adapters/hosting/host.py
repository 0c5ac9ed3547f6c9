"""Hosting: how a layer carries adapters and stays the same object.

The layer's class is changed in place to a generated subclass (one per class of layer) whose forward adds what the
active adapters change; name, parameters, hooks and ``isinstance`` stay as they were. The adapters are a submodule
``adapters`` of the layer, so that ``.to()``, ``state_dict()``, DDP and FSDP see them.

How the forward lets them act is told by ``Site.hosting``: "layer" (one tensor in, one out), "attention"
(MultiheadAttention, through its weights), "norm" (its own forward with the adapted weight and bias), "module" (any
arguments; the first tensor of the output is changed), "owner" (a module that keeps bare parameters; adapters stand one
level lower, by parameter: see :mod:`studio.adapters.hosting.owner`), "quantized" (a layer of others that would not
multiply by a baked weight itself).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.hosting.attention import adapted, attend
from studio.adapters.hosting.owner import Owner
from studio.adapters.sites.language import ModelSite
from studio.adapters.sites.module import first_of, input_of, with_first
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

if TYPE_CHECKING:
    from studio.adapters.hosting.assembly import Assembly

__all__ = ["Adapters", "Mount", "host", "hosted_class", "is_hosted", "mount_of", "unhost"]

MOUNT: Final = "_mount"
Coefficient: TypeAlias = "float | Tensor"


class Adapters(nn.Module):
    """The adapters of one layer, by name; any name is allowed, ``keys`` and ``forward`` too."""

    def add(self, name: str, adapter: Adapter) -> None:
        """Puts ``adapter`` under ``name``."""
        self._modules[name] = adapter

    def get(self, name: str) -> Adapter | None:
        """Returns the adapter ``name``, or None where this layer does not have it."""
        return cast("Adapter | None", self._modules.get(name))

    def remove(self, name: str) -> None:
        """Takes the adapter ``name`` out."""
        del self._modules[name]

    def names(self) -> list[str]:
        """Returns the names of the adapters on this layer."""
        return list(self._modules)


class Mount:
    """What a hosted layer keeps beside its adapters: its site, whose blend it follows, and the plan made from it."""

    def __init__(self, site: Site, assembly: Assembly) -> None:
        self.site = site
        self.assembly = assembly
        self.called = False
        self.seen = False  # whether it was ever called
        self.forget()

    def forget(self) -> None:
        """Drops the plan and all stacked tensors."""
        self.version = -1
        self.training = False
        self.drops = False
        self.fused: list[tuple[Adapter, Coefficient]] = []
        self.others: list[tuple[Adapter, Coefficient]] = []
        self.movers: list[tuple[Adapter, Coefficient]] = []
        self.stack: Stack | None = None
        self.tuned: tuple[Sources, tuple[Tensor, Tensor | None]] | None = None

    @property
    def adapters(self) -> Adapters:
        """The adapters on the layer."""
        found = cast(Adapters, self.site.module._modules["adapters"])
        return cast(Adapters, found._modules[self.site.weight_name]) if self.site.hosting == "owner" else found

    @property
    def place(self) -> str:
        """Path of :attr:`adapters` in the model."""
        path = self.site.path
        if self.site.hosting == "owner":
            path, _, name = path.rpartition(".")
            return f"{path}.adapters.{name}".lstrip(".")
        return f"{path}.adapters".lstrip(".")

    def acts(self) -> bool:
        """Says whether any adapter acts on the layer under the current blend."""
        self.prepare()
        return bool(self.acting)

    @property
    def acting(self) -> list[tuple[Adapter, Coefficient]]:
        """The adapters that act under the current plan, and how strongly."""
        return [*self.fused, *self.others, *self.movers]

    def follows(self, weights: Collection[int]) -> bool:
        """Says whether what acts here acts on one of ``weights`` (by ``id``) as a whole, wherever that is used."""
        return id(self.site.weight) in weights and all(adapter.tied for adapter, _ in self.acting)

    def prepare(self) -> None:
        """Brings the plan up to date: which adapters act, how strongly, and which of them on the fused path."""
        training = self.site.module.training
        if self.version == self.assembly.version and not (self.drops and self.training != training):
            return
        self.forget()
        for name, module in self.adapters._modules.items():
            adapter = cast(Adapter, module)
            coefficient = self.assembly.coefficient(name, self.site.path)
            if not isinstance(coefficient, Tensor) and coefficient == 0.0:
                continue
            drops = adapter.dropout > 0
            self.drops |= drops
            alone = not adapter.fused or (drops and training and adapter.trainable)
            (self.movers if adapter.moves else self.others if alone else self.fused).append((adapter, coefficient))
        if self.others:  # they need the output of the base for its own input
            self.others, self.movers = [*self.movers, *self.others], []
        self.training = training
        self.version = self.assembly.version

    def given(self, x: Tensor) -> Tensor:
        """Returns what the base is called with: ``x``, changed by the methods that change a layer's input."""
        if torch.compiler.is_compiling():
            return x
        if self.version != self.assembly.version or self.drops:
            self.prepare()
        moved = x
        for adapter, coefficient in self.movers:
            if isinstance(coefficient, Tensor):
                coefficient = self.site.over_batch(self._checked(coefficient, x), x)
            moved = adapter(type(adapter).moved, moved, x, coefficient)
        return moved

    def whole(self) -> tuple[Tensor, Tensor | None] | None:
        """Returns the weight and bias under the blend; None where samples differ, and under ``torch.compile``."""
        if torch.compiler.is_compiling():
            return None
        if self.version != self.assembly.version or self.drops:
            self.prepare()
        if any(isinstance(coefficient, Tensor) for _, coefficient in self.acting):
            return None
        if self.tuned is not None and self.tuned[0].hold(self.tuned[1][0]):
            self.called = True
            return self.tuned[1]
        weight, bias = adapted(self, self.site.weight, self.site.bias, 0)
        if not (weight.requires_grad or (bias is not None and bias.requires_grad)):
            self.tuned = (Sources(self.site.module, *(adapter for adapter, _ in self.acting)), (weight, bias))
        return weight, bias

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns ``y + Σ s_i · change_i(x)`` for the output ``y`` of the base; a module's ``x`` is its main input."""
        self.called = True
        if torch.compiler.is_compiling():
            return self._act_compiled(x, y)
        if self.version != self.assembly.version or self.drops:
            self.prepare()
        result = self._act_fused(x, y) if self.fused else y
        if self.others:
            weight, bias = self.site.operands(y)
            for adapter, coefficient in self.others:
                if isinstance(coefficient, Tensor):
                    change = adapter(type(adapter).change, x, y, weight, bias)
                    result = result + change * self.site.over_batch(self._checked(coefficient, y), y)
                else:
                    result = adapter(type(adapter).act, result, x, y, weight, bias, coefficient)
        return result

    def _checked(self, coefficient: Tensor, y: Tensor) -> Tensor:
        if coefficient.shape[0] != y.shape[0]:
            raise DoesNotFit(
                f"the blend names {coefficient.shape[0]} rows, and {self.site.path} was called with {y.shape[0]}; "
                "give one strength per sample, and sample_rows(...) where a sample has several rows (guidance)"
            )
        return coefficient.to(y.device, y.dtype)

    def _act_fused(self, x: Tensor, y: Tensor) -> Tensor:
        site, stack = self.site, self.stack
        if stack is not None and stack.holds(y.dtype):
            y = site.add_raised(y, site.lower(x, stack.down), stack.up)
            return y if stack.bias is None else y + stack.bias
        parts = [(_factors(adapter), coefficient) for adapter, coefficient in self.fused]
        if len(parts) == 1 and not isinstance(parts[0][1], Tensor):
            (down, up, scale, bias), dtype = parts[0][0], y.dtype
            if down.requires_grad or up.requires_grad:  # read anew at every call: optimizers may replace them
                scale *= parts[0][1]
                if scale != 1.0:  # on the small factor, as in a stack: frozen and trainable agree bit for bit
                    up, bias = up * scale, None if bias is None else bias * scale
                if down.dtype != dtype:
                    down, up = down.to(dtype), up.to(dtype)
                y = site.add_raised(y, site.lower(x, down), up)
                return y if bias is None else y + site.over_outputs(bias.to(dtype))
        if any(isinstance(coefficient, Tensor) for _, coefficient in parts):
            return self._act_by_sample(x, y, parts)
        down, up, bias = _stacked(site, cast("list[tuple[Factors, float]]", parts), y.dtype)
        if not (down.requires_grad or up.requires_grad):
            self.stack = Stack(down.detach(), up.detach(), bias, [adapter for adapter, _ in self.fused])
        y = site.add_raised(y, site.lower(x, down), up)
        return y if bias is None else y + bias

    def _act_compiled(self, x: Tensor, y: Tensor) -> Tensor:
        """The same for ``torch.compile``: every adapter is in the graph and its strength is read from a tensor.

        Changing a strength then writes into that tensor and compiles nothing anew; nothing is cached in the graph.
        """
        site, base = self.site, y
        adapters = [cast(Adapter, adapter) for adapter in self.adapters._modules.values()]
        levels = self.assembly.levels_at(site.path, tuple(self.adapters._modules)).to(y.dtype)
        downs, ups, spread = [], [], []
        for index, adapter in enumerate(adapters):
            level = levels[..., index]
            if not adapter.fused or (adapter.dropout > 0 and site.module.training and adapter.trainable):
                change = type(adapter).change(adapter, x, base, *site.operands(base))
                y = y + change * (site.over_batch(level, y) if level.dim() else level)
                continue
            down, up, scale, bias = adapter.factors()
            downs.append(down.to(base.dtype))
            ups.append(up.to(base.dtype))
            spread.append((level * scale)[..., None].expand(*level.shape, down.shape[0]))
            if bias is not None:
                shift = site.over_outputs(bias.to(base.dtype) * (level * scale)[..., None])
                y = y + (_batched(shift, y) if level.dim() else shift)
        if downs:
            h = site.lower(x, torch.cat(downs))
            y = site.add_raised(y, h * site.over_rank(torch.cat(spread, dim=-1), h), torch.cat(ups, dim=1))
        return y

    def _act_by_sample(self, x: Tensor, y: Tensor, parts: list[tuple[Factors, Coefficient]]) -> Tensor:
        """The fused path with one coefficient per row and rank: ``y + up · (c ⊙ (down · x))``."""
        site = self.site
        down, up = (
            torch.cat(t) for t in zip(*((f.down.to(y.dtype), f.up.t().to(y.dtype)) for f, _ in parts), strict=True)
        )
        scales = [coefficient * factors.scale for factors, coefficient in parts]
        h = site.lower(x, down)
        spread = _spread([factors.down.shape[0] for factors, _ in parts], scales)
        y = site.add_raised(y, h * site.over_rank(self._checked(spread, y), h), up.t())
        for (factors, _), scale in zip(parts, scales, strict=True):
            if factors.bias is not None:
                each = scale.to(y.device, y.dtype)[:, None] if isinstance(scale, Tensor) else scale
                y = y + _batched(site.over_outputs(factors.bias.to(y.dtype)[None] * each), y)
        return y


class Sources:
    """The tensors of frozen modules that something was made from."""

    __slots__ = ("tensors",)

    def __init__(self, *modules: nn.Module) -> None:
        self.tensors = [
            (table, name, tensor, _version(tensor))
            for module in modules
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]

    def hold(self, made: Tensor) -> bool:
        """Says whether they are the same tensors, unchanged and frozen, so that ``made`` still stands for them."""
        if made.is_inference() and not torch.is_inference_mode_enabled():
            return False
        for table, name, tensor, version in self.tensors:
            if table.get(name) is not tensor or tensor.requires_grad or _version(tensor) != version:
                return False
        return True


class Stack:
    """The factors of all frozen adapters of a layer, stacked and scaled once."""

    __slots__ = ("bias", "down", "sources", "up")

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None, adapters: list[Adapter]) -> None:
        self.down, self.up, self.bias = down, up, bias
        self.sources = Sources(*adapters)

    def holds(self, dtype: torch.dtype) -> bool:
        """Says whether the stack still stands for its sources, in ``dtype``."""
        return self.up.dtype == dtype and self.sources.hold(self.up)


def _factors(adapter: Adapter) -> Factors:
    """The factors, through a call of the module where hooks of others have to see it."""
    if adapter._forward_pre_hooks or adapter._forward_hooks or "forward" in adapter.__dict__:
        return adapter(type(adapter).factors)
    return adapter.factors()


def _stacked(
    site: Site, parts: list[tuple[Factors, float]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All ``down`` along the rank, all ``up`` with their scales in them, and the sum of the biases."""
    down = torch.cat([factors.down for factors, _ in parts])
    up = torch.cat([factors.up * (factors.scale * coefficient) for factors, coefficient in parts], dim=1)
    shifts = [factors.bias * (factors.scale * number) for factors, number in parts if factors.bias is not None]
    bias = site.over_outputs(torch.stack(shifts).sum(0).to(dtype)) if shifts else None
    return down.to(dtype), up.to(dtype), bias


def _spread(ranks: list[int], scales: list[Coefficient]) -> Tensor:
    """One coefficient per row and stacked rank ``(rows, Σ ranks)``."""
    count = next(scale.shape[0] for scale in scales if isinstance(scale, Tensor))
    columns = [
        (scale if isinstance(scale, Tensor) else torch.full((count,), scale))[:, None].expand(count, rank)
        for scale, rank in zip(scales, ranks, strict=True)
    ]
    return torch.cat(columns, dim=1)


def _batched(over: Tensor, y: Tensor) -> Tensor:
    """``(batch, rows, ...)`` with as many axes as ``y``."""
    return over.reshape(over.shape[0], *(1,) * (y.dim() - over.dim()), *over.shape[1:])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


# -- the generated classes -------------------------------------------------------------------------------------------


def _layer_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mount = self.__dict__[MOUNT]
        return cast(Tensor, mount.act(x, base_forward(self, mount.given(x), *args, **kwargs)))

    return forward


def _attention_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attend(self, *args, **kwargs)

    return forward


def _module_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = base_forward(self, *args, **kwargs)
        mount = self.__dict__[MOUNT]
        return with_first(output, mount.act(input_of(args, kwargs), first_of(output, mount.site.path)))

    return forward


def _norm_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mount = self.__dict__[MOUNT]
        whole = mount.whole() if mount.site.stateless else None
        if whole is None:
            return cast(Tensor, mount.act(x, base_forward(self, x)))
        return cast(Tensor, mount.site.computed(x, *whole))

    return forward


def _owner_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return base_forward(self, *args, **kwargs)
        owner: Owner = self.__dict__[MOUNT]
        owner.enter()
        try:
            return base_forward(self, *args, **kwargs)
        finally:
            owner.leave()

    return forward


def _parameter(name: str) -> property:
    """What a module that keeps bare parameters gives to those who ask it for one."""

    def read(self: nn.Module) -> Tensor:
        try:
            return cast(Tensor, self.__dict__[MOUNT].tensor(self, name))
        except AttributeError as error:  # which nn.Module would answer with the bare parameter
            raise RuntimeError(f"the adapted parameter {name} could not be made: {error}") from error

    return property(read)


def _quantized_forward(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mount = self.__dict__[MOUNT]
        return cast(Tensor, mount.act(x, mount.site.run(base_forward, x)))

    return forward


_FORWARDS: Final[dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "layer": _layer_forward,
    "attention": _attention_forward,
    "module": _module_forward,
    "norm": _norm_forward,
    "quantized": _quantized_forward,
    "owner": _owner_forward,
}
"""``Site.hosting`` -> what makes the forward of a hosted class from that of its base."""


Key: TypeAlias = "tuple[type[nn.Module], str, tuple[str, ...]]"


def _rebuild(*key: Any) -> nn.Module:
    cls = hosted_class(*key)
    return cls.__new__(cls)


_CLASSES: Final[dict[Key, type[nn.Module]]] = {}


def hosted_class(base: type[nn.Module], hosting: str, parameters: tuple[str, ...] = ()) -> type[nn.Module]:
    """Returns the subclass of ``base`` whose forward lets adapters act; one per class of layer and ``hosting``.

    Args:
        base: class of the layer. hosting: how (see :class:`Site`).
        parameters: names of the bare parameters that it gives out adapted.
    """
    key = (base, hosting, parameters)
    if key not in _CLASSES:
        _CLASSES[key] = _make_class(*key)
    return _CLASSES[key]


def _make_class(base: type[nn.Module], hosting: str, parameters: tuple[str, ...]) -> type[nn.Module]:
    def apply_(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.__dict__[MOUNT].forget()
        return base._apply(self, fn, recurse)

    def reduce_ex(self: nn.Module, protocol: int) -> Any:
        reduced: Any = base.__reduce_ex__(self, protocol)
        return (_rebuild, (base, hosting, parameters), *reduced[2:])

    body = {
        "forward": _FORWARDS[hosting](base.forward),
        "_apply": apply_,
        "__reduce_ex__": reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "hosts": base,
        **{name: _parameter(name) for name in parameters},
    }
    return cast("type[nn.Module]", type(base.__name__, (base,), body))


def is_hosted(module: nn.Module) -> bool:
    """Says whether ``module`` carries adapters."""
    return MOUNT in module.__dict__


def mount_of(module: nn.Module) -> Mount:
    """Returns the mount of a hosted layer."""
    return cast(Mount, module.__dict__[MOUNT])


def host(site: Site, assembly: Assembly) -> Mount:
    """Makes the layer of ``site`` carry adapters.

    Raises:
        UnsupportedLayer: something else has replaced the layer's forward, or uses the name ``adapters`` in it.
    """
    mount, module = Mount(site, assembly), site.module
    if site.hosting != "owner":
        _open(site, mount)
        return mount
    if not is_hosted(module):
        _open(site, Owner())
    owner: Owner = module.__dict__[MOUNT]
    owner.mounts[site.weight_name] = mount
    cast(Adapters, module._modules["adapters"])._modules[site.weight_name] = Adapters()
    return mount


def _open(site: Site, kept: Mount | Owner) -> None:
    module, base = site.module, type(site.module)
    tables = (module.__dict__, module._modules, module._parameters, module._buffers)
    if any("adapters" in names for names in tables):
        raise UnsupportedLayer(f"{site.path} has an attribute 'adapters' of its own, where ours would be; exclude it")
    if not isinstance(site, ModelSite):
        cls = hosted_class(base, site.hosting, tuple(module._parameters) if site.hosting == "owner" else ())
        _rebind(site.path, module, base.forward, cls.forward)
        module.__class__ = cls
    module.__dict__[MOUNT] = kept
    module._modules["adapters"] = Adapters()
    if isinstance(site, ModelSite):
        site.wire(cast(Mount, kept))


def _close(module: nn.Module) -> None:
    del module._modules["adapters"]
    del module.__dict__[MOUNT]


def unhost(site: Site) -> None:
    """Gives the layer back as it was before :func:`host`; one that keeps parameters, after the last of them.

    Raises:
        DoesNotFit: another wrapper (FSDP) has changed the layer's class since.
    """
    module = site.module
    check_removable(site)
    if site.hosting == "owner":
        owner: Owner = module.__dict__[MOUNT]
        owner.mounts.pop(site.weight_name)
        del cast(Adapters, module._modules["adapters"])._modules[site.weight_name]
        if owner.mounts:
            owner.forget()
            return
    if isinstance(site, ModelSite):
        site.unwire()
        _close(module)
        return
    cls = type(module)
    base = cast("type[nn.Module]", cls.hosts)  # type: ignore[attr-defined]
    _rebind(site.path, module, cls.forward, base.forward)
    _close(module)
    module.__class__ = base


def check_removable(site: Site) -> None:
    """Checks that nothing was wrapped around a hosted layer.

    Raises:
        DoesNotFit: the layer's class is no longer the one that hosting gave it.
    """
    if "hosts" not in vars(type(site.module)) and not isinstance(site, ModelSite):
        raise DoesNotFit(
            f"{site.path} has been wrapped as {type(site.module).__name__} since the adapter was attached; undo that "
            "wrapper first, then detach"
        )


def _rebind(path: str, module: nn.Module, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Makes hooks of others that hold the layer's forward as a bound method call ``new`` instead of ``old``.

    accelerate keeps it in ``_old_forward``, diffusers in the references of ``_diffusers_hook``; both leave a bound
    method in the instance's ``forward`` when they are taken off.
    """
    holders: list[tuple[Any, str]] = [(module.__dict__, "_old_forward"), (module.__dict__, "forward")]
    registry = module.__dict__.get("_diffusers_hook")
    for reference in () if registry is None else registry._fn_refs:
        holders += [(reference.__dict__, "forward"), (reference.__dict__, "original_forward")]
    found = False
    for table, name in holders:
        held = table.get(name)
        if isinstance(held, MethodType) and held.__func__ is old and held.__self__ is module:
            table[name] = MethodType(new, module)
            found = True
    if "forward" in module.__dict__ and not found:
        raise UnsupportedLayer(
            f"the forward of {path} has been replaced by something the studio does not know, so an adapter on it would "
            "never be called; take that wrapper off, attach, and put it back"
        )
