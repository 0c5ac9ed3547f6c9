"""Hosting: how a layer carries adapters and stays the same object.

The layer's class is changed in place to a generated subclass (one per class of layer) whose forward adds what the
active adapters change; name, parameters, hooks and ``isinstance`` stay as they were. The adapters are a submodule
``adapters`` of the layer, so that ``.to()``, ``state_dict()``, DDP and FSDP see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters.adapter import Adapter
from studio.adapters.attention import attend
from studio.adapters.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

if TYPE_CHECKING:
    from studio.adapters.assembly import Assembly

__all__ = ["Adapters", "Mount", "host", "hosted_class", "is_hosted", "mount_of", "unhost"]

MOUNT: Final = "_mount"
Coefficient = float | Tensor


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
        self.forget()

    def forget(self) -> None:
        """Drops the plan and all stacked tensors."""
        self.version = -1
        self.training = False
        self.drops = False
        self.fused: list[tuple[Adapter, Coefficient]] = []
        self.others: list[tuple[Adapter, Coefficient]] = []
        self.stack_key: tuple[Any, ...] | None = None
        self.stack: tuple[Tensor, Tensor] | None = None

    @property
    def adapters(self) -> Adapters:
        """The adapters on the layer."""
        return cast(Adapters, self.site.module._modules["adapters"])

    def acts(self) -> bool:
        """Says whether any adapter acts on the layer under the current blend."""
        self.prepare()
        return bool(self.fused or self.others)

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
            (self.others if alone else self.fused).append((adapter, coefficient))
        self.training = training
        self.version = self.assembly.version

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns ``y + Σ s_i · change_i(x)`` for the output ``y`` of the base."""
        self.called = True
        if self.version != self.assembly.version or self.drops:
            self.prepare()
        result = y
        if self.fused:
            result = self._act_fused(x, y)
        if self.others:
            weight, bias = self.site.weight, self.site.bias
            for adapter, coefficient in self.others:
                change = adapter(type(adapter).change, x, y, weight, bias)
                if isinstance(coefficient, Tensor):
                    change = change * self.site.over_batch(self._checked(coefficient, y), y)
                    result = result + change
                else:
                    result = torch.add(result, change, alpha=coefficient)
        return result

    def _checked(self, coefficient: Tensor, y: Tensor) -> Tensor:
        if coefficient.shape[0] != y.shape[0]:
            raise DoesNotFit(
                f"the blend names {coefficient.shape[0]} rows, and {self.site.path} was called with {y.shape[0]}; "
                "give one strength per sample, and sample_rows(...) where a sample has several rows (guidance)"
            )
        return coefficient.to(y.device, y.dtype)

    def _act_fused(self, x: Tensor, y: Tensor) -> Tensor:
        site = self.site
        if len(self.fused) == 1 and not isinstance(self.fused[0][1], Tensor):
            adapter, coefficient = self.fused[0]
            down, up, scale, bias = adapter(type(adapter).factors)
            dtype = y.dtype
            if down.dtype != dtype:
                down, up = down.to(dtype), up.to(dtype)
            y = site.add_raised(y, site.lower(x, down), up, scale * coefficient)
            return y if bias is None else y + site.over_outputs((bias * (scale * coefficient)).to(dtype))
        parts = [(adapter(type(adapter).factors), coefficient) for adapter, coefficient in self.fused]
        down, up = self._stacked([part for part, _ in parts], y.dtype)
        scales = [part.scale * coefficient for part, coefficient in parts]
        h = site.lower(x, down)
        first = scales[0]
        if all(not isinstance(scale, Tensor) and scale == first for scale in scales):
            result = site.add_raised(y, h, up, cast(float, first))
        else:
            ranks = tuple(part.down.shape[0] for part, _ in parts)
            spread = self.assembly.spread(ranks, scales, h)
            if spread.dim() == 2:
                self._checked(spread, y)
            result = site.add_raised(y, h * site.over_rank(spread, h), up, 1.0)
        for (part, _), scale in zip(parts, scales, strict=True):
            if part.bias is not None:
                bias = part.bias.to(y.dtype)
                over = site.over_outputs(bias * scale if not isinstance(scale, Tensor) else bias[None])
                shift = over if not isinstance(scale, Tensor) else _batched(over, y) * site.over_batch(
                    self._checked(scale, y), y
                )
                result = result + shift
        return result

    def _stacked(self, parts: list[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All ``down`` stacked along the rank, all ``up`` likewise; kept only while none of them can change."""
        if any(part.down.requires_grad or part.up.requires_grad for part in parts):
            downs, ups = zip(*((part.down.to(dtype), part.up.to(dtype)) for part in parts), strict=True)
            return torch.cat(downs), torch.cat(ups, dim=1)
        key = (dtype, *((id(t), _version(t)) for part in parts for t in (part.down, part.up)))
        if self.stack is None or self.stack_key != key:
            with torch.no_grad():
                downs, ups = zip(*((part.down.to(dtype), part.up.to(dtype)) for part in parts), strict=True)
                self.stack, self.stack_key = (torch.cat(downs), torch.cat(ups, dim=1)), key
        return self.stack


def _batched(over: Tensor, y: Tensor) -> Tensor:
    """``(1, rows, ...)`` with as many axes as ``y``."""
    return over if over.dim() == y.dim() else over.reshape(1, *(1,) * (y.dim() - over.dim()), *over.shape[1:])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


# -- the generated classes -------------------------------------------------------------------------------------------


def _rebuild(base: type[nn.Module]) -> nn.Module:
    cls = hosted_class(base)
    return cast(nn.Module, cls.__new__(cls))


@functools.cache
def hosted_class(base: type[nn.Module]) -> type[nn.Module]:
    """Returns the subclass of ``base`` whose forward lets adapters act; one per class of layer."""
    base_forward = base.forward

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return cast(Tensor, self.__dict__[MOUNT].act(x, base_forward(self, x, *args, **kwargs)))

    def attention_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attend(self, *args, **kwargs)

    def apply_(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.__dict__[MOUNT].forget()
        return base._apply(self, fn, recurse)

    def reduce_ex(self: nn.Module, protocol: int) -> Any:
        _, _, *rest = base.__reduce_ex__(self, protocol)  # type: ignore[misc]
        return (_rebuild, (base,), *rest)

    body = {
        "forward": attention_forward if issubclass(base, nn.MultiheadAttention) else forward,
        "_apply": apply_,
        "__reduce_ex__": reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "hosts": base,
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
    module, base = site.module, type(site.module)
    taken = any("adapters" in names for names in (module.__dict__, module._modules, module._parameters, module._buffers))
    if taken:
        raise UnsupportedLayer(f"{site.path} has an attribute 'adapters' of its own, where ours would stand; exclude it")
    cls = hosted_class(base)
    _rebind(site.path, module, base.forward, cls.forward)
    mount = Mount(site, assembly)
    module.__dict__[MOUNT] = mount
    module._modules["adapters"] = Adapters()
    module.__class__ = cls
    return mount


def unhost(module: nn.Module) -> None:
    """Gives the layer back as it was before :func:`host`.

    Raises:
        DoesNotFit: another wrapper (FSDP) has changed the layer's class since.
    """
    check_removable(module)
    cls = type(module)
    base = cast("type[nn.Module]", cls.hosts)  # type: ignore[attr-defined]
    _rebind(mount_of(module).site.path, module, cls.forward, base.forward)
    del module._modules["adapters"]
    del module.__dict__[MOUNT]
    module.__class__ = base


def check_removable(module: nn.Module) -> None:
    """Checks that nothing was wrapped around a hosted layer.

    Raises:
        DoesNotFit: the layer's class is no longer the one that hosting gave it.
    """
    if "hosts" not in vars(type(module)):
        raise DoesNotFit(
            f"{mount_of(module).site.path} has been wrapped as {type(module).__name__} since the adapter was attached; "
            "undo that wrapper first, then detach"
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
