"""Hosting: how a layer carries adapters and stays the same object.

The layer's class is changed in place to a generated subclass (one per class of layer) whose forward adds what the
active adapters change; name, parameters, hooks and ``isinstance`` stay as they were. The adapters are a submodule
``adapters`` of the layer, so that ``.to()``, ``state_dict()``, DDP and FSDP see them.

How adapters act there is told by ``Site.hosting``: a row of :data:`FORWARDS`, which makes the new forward from that of
the base, or, for what is no layer but a whole model, a row of :data:`HOOKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Final, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from studio.adapters.hosting.attention import attend
from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.mount import MOUNT, Adapters, Mount
from studio.adapters.hosting.owner import Owner
from studio.adapters.sites.module import first_of, input_of, with_first
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["FORWARDS", "HOOKS", "Hooks", "check_removable", "host", "hosted_class", "is_hosted", "mount_of", "unhost"]

Forward: TypeAlias = Callable[..., Any]


class Hooks(Protocol):
    """What lets adapters act on a model as a whole, without another class: hooks on the model and parts of it."""

    def remove(self) -> None:
        """Takes all hooks off."""


HOOKS: Final[dict[str, Callable[[Mount], Hooks]]] = {}
"""``Site.hosting`` -> what puts hooks on; filled by those who know how (:mod:`studio.adapters.tokens.wiring`)."""


# -- the generated classes -------------------------------------------------------------------------------------------


def _layer_forward(base_forward: Forward) -> Forward:
    """One tensor in, one tensor out."""

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mount: Mount = self.__dict__[MOUNT]
        return mount.changed(x, base_forward(self, mount.moved(x), *args, **kwargs))

    return forward


def _attention_forward(base_forward: Forward) -> Forward:
    """``MultiheadAttention``, which reads its weights itself."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attend(self, *args, **kwargs)

    return forward


def _module_forward(base_forward: Forward) -> Forward:
    """Any arguments; the first tensor of the output is changed."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = base_forward(self, *args, **kwargs)
        mount: Mount = self.__dict__[MOUNT]
        x = cast(Tensor, input_of(args, kwargs))
        return with_first(output, mount.changed(x, first_of(output, mount.site.path)))

    return forward


def _norm_forward(base_forward: Forward) -> Forward:
    """The layer's own function with the adapted weight and bias, where all rows have the same ones."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mount: Any = self.__dict__[MOUNT]
        kept = mount.kept() if mount.site.stateless else None
        if kept is None:
            return cast(Tensor, mount.changed(x, base_forward(self, x)))
        return cast(Tensor, mount.site.computed(x, *kept))

    return forward


def _quantized_forward(base_forward: Forward) -> Forward:
    """A layer whose weight is packed: its site knows what it computes, a baked weight included."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mount: Any = self.__dict__[MOUNT]
        return cast(Tensor, mount.changed(x, mount.site.run(base_forward, mount.moved(x))))

    return forward


def _owner_forward(base_forward: Forward) -> Forward:
    """A module that keeps bare parameters; adapters stand one level lower, by parameter (see ``owner.py``)."""

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


FORWARDS: Final[dict[str, Callable[[Forward], Forward]]] = {
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
        "forward": FORWARDS[hosting](base.forward),
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


def host(site: Site, levels: Levels) -> Mount:
    """Makes the layer of ``site`` carry adapters, which act as ``levels`` say.

    Raises:
        UnsupportedLayer: something else has replaced the layer's forward, or uses the name ``adapters`` in it.
    """
    mount, module = Mount(site, levels), site.module
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
    if site.hosting in FORWARDS:
        cls = hosted_class(base, site.hosting, tuple(module._parameters) if site.hosting == "owner" else ())
        _rebind(site.path, module, base.forward, cls.forward)
        module.__class__ = cls
    module.__dict__[MOUNT] = kept
    module._modules["adapters"] = Adapters()
    if site.hosting in HOOKS:
        mount = cast(Mount, kept)
        mount.hooks = HOOKS[site.hosting](mount)


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
    if site.hosting in HOOKS:
        mount_of(module).hooks.remove()
    cls = type(module)
    if site.hosting in FORWARDS:
        _rebind(site.path, module, cls.forward, cls.hosts.forward)  # type: ignore[attr-defined]
    del module._modules["adapters"]
    del module.__dict__[MOUNT]
    if site.hosting in FORWARDS:
        module.__class__ = cls.hosts  # type: ignore[attr-defined]


def check_removable(site: Site) -> None:
    """Checks that nothing was wrapped around a hosted layer.

    Raises:
        DoesNotFit: the layer's class is no longer the one that hosting gave it.
    """
    if site.hosting in FORWARDS and "hosts" not in vars(type(site.module)):
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
