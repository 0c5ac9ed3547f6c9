"""Targets: which layers of a model a pattern names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from studio.adapters.contract.adapter import METHODS
from studio.adapters.contract.pattern import matches
from studio.adapters.sites.kinds import is_site, kind_of
from studio.adapters.sites.parameter import BARE, bare_parameters
from studio.adapters.targets.presets import PRESETS, resolve
from studio.errors import NoTargets, UnsupportedLayer, nearest
from studio.families import Family, family_of

__all__ = ["PRESETS", "find_targets"]


@dataclass(frozen=True)
class _Component:
    """A component as targets see it.

    Attributes:
        module: the component. layers: path -> what a method looks at. bare: path of a bare parameter -> its kind.
        kinds: what the method covers.
    """

    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]
    bare: Mapping[str, str]
    kinds: Collection[str]

    def named(self, pattern: str) -> list[str]:
        """The paths that a pattern names: layers, or bare parameters where it names no layer or is a whole path."""
        found = [path for path in self.layers if _names(pattern, self.name, path)]
        known = [path for path, kind in self.bare.items() if kind in self.kinds]
        exact = [path for path in known if pattern in (path, f"{self.name}.{path}")]
        return [*found, *exact] if found or exact else [path for path in known if _names(pattern, self.name, path)]

    def ordered(self, chosen: Iterable[str]) -> list[str]:
        """Paths in the order of the model; a MultiheadAttention brings its output projection with it."""
        wanted = set(chosen)
        whole = [path for path in wanted if isinstance(self.layers.get(path), nn.MultiheadAttention)]
        wanted |= {f"{path}.out_proj" if path else "out_proj" for path in whole}
        return [path for path in (*self.layers, *self.bare) if path in wanted]


def find_targets(
    components: Mapping[str, nn.Module],
    targets: str | Sequence[str],
    exclude: Sequence[str] = (),
    *,
    chosen: Sequence[str] | None = None,
    kinds: Collection[str] = (),
    method: str = "the method",
) -> dict[str, list[str]]:
    """Finds the layers that ``targets`` names.

    Args:
        components: component name to module; ``{"": model}`` for a model by itself.
        targets: a preset, or patterns; a pattern may begin with a component's name.
        exclude: patterns of layers to leave out.
        chosen: the components to look in; None looks in all for patterns, and for a preset in the denoiser, or in
            all where there is none.
        kinds: kinds of sites to look at besides the ordinary layers. method: who asks, for messages.

    Returns:
        Component name to paths, in the order of the model; components without a match are left out.

    Raises:
        NoTargets: a pattern, or a preset in a chosen component, that matches nothing.
        UnsupportedLayer: a pattern that matches only what is of another kind.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> find_targets({"": net}, ["2"])
        {'': ['2']}
        >>> find_targets({"": net}, ["3"])
        Traceback (most recent call last):
        ...
        studio.errors.NoTargets: the target '3' matches no layer; the nearest layers are: 0, 2
    """
    for component in chosen or ():
        if component not in components:
            raise NoTargets(f"there is no component {component!r}; the model has {', '.join(components)}")
    looked = [_component(n, module, kinds) for n, module in components.items() if chosen is None or n in chosen]
    if isinstance(targets, str) and targets in PRESETS:
        found = _preset(targets, looked, chosen, method)
    else:
        found = _patterns((targets,) if isinstance(targets, str) else tuple(targets), looked, method)
    for pattern in exclude:
        found = {name: [path for path in paths if not _names(pattern, name, path)] for name, paths in found.items()}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise NoTargets(f"exclude={list(exclude)!r} leaves nothing of the targets {targets!r}")
    return found


def _component(name: str, module: nn.Module, kinds: Collection[str]) -> _Component:
    layers = {
        path: layer for path, layer in module.named_modules() if is_site(layer, kinds) and not _inside_adapter(path)
    }
    bare = {
        path: BARE[1] if cast(Tensor, owner._parameters[own]).dim() == 3 else BARE[0]
        for path, owner, own in bare_parameters(module)
    }
    return _Component(name, module, layers, bare, kinds)


def _check_kind(pattern: str, looked: Sequence[_Component], method: str) -> None:
    """Refuses a pattern that matches norms or bare parameters alone for a method that does not look at them."""
    layer, _, last = pattern.rpartition(".")
    if last in ("weight", "bias") and any(component.named(layer) for component in looked):
        raise NoTargets(f"the target {pattern!r} is a parameter of a layer; name the layer: {layer!r}")
    for component in looked:
        modules = {p: kind_of(layer) for p, layer in component.module.named_modules() if not _inside_adapter(p)}
        for path, kind in {**modules, **component.bare}.items():
            if kind is not None and kind != "module" and _names(pattern, component.name, path):
                raise _unable(path, kind, method)


def _unable(path: str, kind: str, method: str) -> UnsupportedLayer:
    able = sorted(config.__name__ for config in METHODS.values() if kind in config.adapter.kinds)
    return UnsupportedLayer(
        f"{path or 'the model'} is of kind {kind!r}, which {method} cannot change; name another layer, or take a "
        f"method that can: {', '.join(able)}"
    )


def _inside_adapter(path: str) -> bool:
    return ".adapters." in f".{path}."


def _names(pattern: str, component: str, path: str) -> bool:
    return matches(pattern, path) or (component != "" and matches(pattern, f"{component}.{path}"))


def _patterns(patterns: Sequence[str], looked: Sequence[_Component], method: str) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {component.name: set() for component in looked}
    for pattern in patterns:
        hits = {component.name: component.named(pattern) for component in looked}
        if not any(hits.values()):
            _check_kind(pattern, looked, method)
            everything = [f"{one.name}.{path}".strip(".") for one in looked for path in one.layers]
            everything += [
                f"{one.name}.{p}".strip(".") for one in looked for p, kind in one.bare.items() if kind in one.kinds
            ]
            preset = difflib.get_close_matches(pattern, PRESETS, 1, 0.75)
            meant = f"did you mean the preset {preset[0]!r}? " if preset else ""
            raise NoTargets(f"the target {pattern!r} matches no layer; {meant}{_hint(pattern, everything)}")
        for name, paths in hits.items():
            found[name].update(paths)
    return {component.name: component.ordered(found[component.name]) for component in looked}


def _hint(pattern: str, paths: Sequence[str]) -> str:
    """The nearest layers, each kind once: a pattern is compared with the last words of a path too."""
    ends: dict[str, str] = {}
    words = pattern.removeprefix("re:").count(".") + 1
    for path in paths:
        ends.setdefault(".".join(path.split(".")[-words:]), path)
    if not ends:
        return "the model has no layer that can be adapted"
    return f"the nearest layers are: {', '.join(ends[end] for end in nearest(pattern, ends))}"


def _preset(
    preset: str, looked: Sequence[_Component], chosen: Sequence[str] | None, method: str
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    nothing: NoTargets | None = None
    for component in looked:
        family = family_of(component.module)
        if chosen is None and component.name and family is not None and component.name != family.denoiser:
            continue  # a preset means the denoiser; encoders are adapted when they are asked for
        try:
            paths = _preset_paths(preset, component, family)
        except NoTargets as error:
            nothing, paths = nothing or error, []
        _check_able(component, paths, method)
        if paths:
            found[component.name] = component.ordered(paths)
        elif chosen is not None:
            what = component.name or "the model"
            raise NoTargets(f"the preset {preset!r} matches no layer of {what}; name patterns instead")
    if not found:
        raise nothing or NoTargets(f"the preset {preset!r} matches no layer of the model; name patterns instead")
    return found


def _preset_paths(preset: str, component: _Component, family: Family | None) -> list[str]:
    """What the preset names in a component: by its family's own patterns, or by its structure."""
    if family is not None:
        encoder = bool(family.encoders) and "Text" in type(component.module).__name__
        name = component.name or (family.encoders[0] if encoder else family.denoiser)
        patterns = family.presets.get(preset, {}).get(name)
        if patterns is not None:
            return [path for path in component.layers if any(matches(pattern, path) for pattern in patterns)]
    return resolve(preset, component.module)


def _check_able(component: _Component, paths: Iterable[str], method: str) -> None:
    """Refuses layers that a preset names and the method does not look at."""
    for path in paths:
        if path not in component.layers and component.bare.get(path) not in component.kinds:
            kind = component.bare.get(path) or kind_of(component.module.get_submodule(path)) or "module"
            raise _unable(path, kind, method)
