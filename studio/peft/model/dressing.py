"""Dressing: a layer that carries adapters is one of PEFT's layers too, which ``isinstance`` and attributes show.

The class of the layer is changed once more, to one that also has PEFT's views of the methods on it; the core undoes
both changes when it takes the last adapter off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, cast

from torch import nn

from studio.adapters.hosting.host import hosted_class, is_hosted
from studio.adapters.sites.site import Site
from studio.peft.model.state import KEY, TOKENS, State

__all__ = ["SITE", "dress_all", "generated_class", "undress", "view_of"]

V = TypeVar("V", bound=type)

SITE: Final = "_studio_site"
"""Where the place of a bare parameter's adapters keeps which parameter it is."""

_VIEWS: Final[dict[str, type]] = {}
"""PEFT's word for a method -> its view of a layer with the method on it; "" is the view of all others."""


def view_of(*words: str) -> Callable[[V], V]:
    """Registers PEFT's view of a layer under the words for its methods; "" for all without a view of their own.

    Args:
        words: PEFT's words for methods, or a word and a kind of layer: "LORA:linear", "LORA:Conv2d".
    """

    def register(view: V) -> V:
        _VIEWS.update(dict.fromkeys(words, view))
        return view

    return register


def dress_all(state: State) -> None:
    """Gives the adapted layers of a model the views of the methods that they carry."""
    views: dict[str, set[type]] = {}
    sites: dict[str, Site] = {}
    for name, config in state.configs.items():
        held = [(config.word, state.own_layers(name)), (TOKENS, state.token_layers(name))]
        for word, path, adapter in ((word, *one) for word, layers in held for one in layers.items()):
            views.setdefault(path, set()).add(_view(word, adapter.site))
            sites[path] = adapter.site
    for path, site in sites.items():
        module = site.module
        if site.hosting == "owner":
            _dress_parameter(state, site, views[path])
        if site.hosting in ("owner", "hooks") or not is_hosted(module):
            continue  # no layer that is called with one input
        ordered = sorted(views[path], key=_by_name)
        special = tuple(view for view in ordered if view is not _VIEWS[""])
        module.__class__ = generated_class(vars(type(module))["hosts"], site.hosting, special or tuple(ordered))
        module.__dict__[KEY] = state


def _dress_parameter(state: State, site: Site, views: set[type]) -> None:
    """Gives the place of a bare parameter's adapters the view of their method, where it has one for that."""
    held = cast(nn.Module, site.module._modules["adapters"])._modules[site.weight_name]
    special = tuple(sorted((one for one in views if one is not _VIEWS[""]), key=_by_name))
    if special and held is not None:
        if "holds" not in vars(type(held)):
            held.__class__ = generated_class(type(held), "", special)
        held.__dict__[KEY], held.__dict__[SITE] = state, site


def _view(word: str, site: Site) -> type:
    """PEFT's view of a method's layer: the one for its kind, else the method's, else that of all."""
    known = (type(site.module).__name__, site.kind)
    if site.hosting == "owner":
        return _VIEWS.get(f"{word}:owner", _VIEWS[""])
    return next((_VIEWS[f"{word}:{kind}"] for kind in known if f"{word}:{kind}" in _VIEWS), None) or _VIEWS.get(
        word, _VIEWS[""])  # fmt: skip


def _by_name(view: type) -> str:
    return view.__name__


def undress(modules: Iterable[nn.Module]) -> None:
    """Takes from layers that carry no adapter any more what :func:`dress_all` noted in them.

    Args:
        modules: layers that may have been adapted.
    """
    for module in modules:
        if not is_hosted(module):
            module.__dict__.pop(KEY, None)


Made = tuple[type[nn.Module], str, tuple[type, ...]]

_CLASSES: Final[dict[Made, type[nn.Module]]] = {}


def generated_class(base: type[nn.Module], hosting: str, views: tuple[type, ...]) -> type[nn.Module]:
    """Returns the subclass of a layer's class that has PEFT's views too; one per class, and it pickles and copies.

    Args:
        base: the layer's own class. hosting: how the core hosts it; "" for a module that carries no adapter.
        views: the classes that say what PEFT's users see.
    """
    key = (base, hosting, views)
    if key not in _CLASSES:

        def reduce_ex(self: nn.Module, protocol: int) -> Any:
            reduced: Any = base.__reduce_ex__(self, protocol)
            return (_rebuild, key, *reduced[2:])

        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__reduce_ex__": reduce_ex}
        bases = (*views, hosted_class(base, hosting) if hosting else base)
        made = type(base.__name__, bases, {**names, "hosts" if hosting else "holds": base})
        _CLASSES[key] = cast("type[nn.Module]", made)
    return _CLASSES[key]


def _rebuild(*key: Any) -> nn.Module:
    made = generated_class(*key)
    return made.__new__(made)
