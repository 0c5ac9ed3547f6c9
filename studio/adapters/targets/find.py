"""Targets: which layers of a model a pattern names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import cast

from torch import nn

from studio.adapters.contract.adapter import METHODS
from studio.adapters.contract.pattern import matches
from studio.adapters.sites.kinds import kind_of
from studio.adapters.sites.read import module_at
from studio.adapters.targets.component import Component
from studio.adapters.targets.presets import PRESETS, resolve
from studio.adapters.targets.unmatched import names, nearest_layers
from studio.errors import NoTargets, UnsupportedLayer
from studio.families import Family, family_in

__all__ = ["PRESETS", "find_targets", "search_targets"]


def find_targets(
    components: Mapping[str, nn.Module], targets: str | Sequence[str], exclude: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Finds the ordinary layers that ``targets`` names.

    Args:
        components, targets, exclude: as for :func:`search_targets`.

    Returns:
        Component name to paths, in the order of the model; components without a match are left out.

    Raises:
        NoTargets, UnsupportedLayer: as :func:`search_targets`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> find_targets({"": net}, ["2"])
        {'': ['2']}
        >>> find_targets({"": net}, ["3"])
        Traceback (most recent call last):
        ...
        studio.errors.NoTargets: the target '3' matches no layer; the nearest layers are: 0, 2
    """
    return search_targets(components, targets, exclude)[0]


def search_targets(
    components: Mapping[str, nn.Module],
    targets: str | Sequence[str],
    exclude: Sequence[str] = (),
    *,
    chosen: Sequence[str] | None = None,
    kinds: Collection[str] = (),
    method: str = "the method",
) -> tuple[dict[str, list[str]], list[str]]:
    """Finds the layers that ``targets`` names, and what else it names that is left as it is.

    Args:
        components: component name to module; ``{"": model}`` for a model by itself.
        targets: a preset, or patterns; a pattern may begin with a component's name. An expression (``"re:…"``) names
            bare parameters as it names layers; another pattern does where it names no layer, or is a whole path.
        exclude: patterns of layers to leave out.
        chosen: the components to look in; None looks in all for patterns, and for a preset in the denoiser, or in
            all where there is none.
        kinds: kinds of sites to look at besides the ordinary layers. method: who asks, for messages.

    Returns:
        Component name to paths, in the order of the model, components without a match left out; and a sentence for each
        pattern that names parameters too, which stay as they are because it names layers.

    Raises:
        NoTargets: a pattern of either, or a preset in a chosen component, that matches nothing.
        UnsupportedLayer: a pattern that matches only what is of another kind, or layers that PEFT has wrapped.
    """
    for component in chosen or ():
        if component not in components:
            known = ", ".join(filter(None, components)) or "none: it is a model by itself, leave components out"
            raise NoTargets(f"there is no component {component!r}; the model has {known}")
    looked = [Component(n, module, kinds) for n, module in components.items() if chosen is None or n in chosen]
    _check_foreign(targets, looked)
    patterns: Sequence[str] = ()
    if isinstance(targets, str) and targets in PRESETS:
        found = _preset(targets, looked, chosen, method)
    else:
        patterns = (targets,) if isinstance(targets, str) else tuple(targets)
        found = _patterns(patterns, looked, method)
    _check_excluded(exclude, components, kinds)
    for pattern in exclude:
        found = {name: [path for path in paths if not names(pattern, name, path)] for name, paths in found.items()}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise NoTargets(f"exclude={list(exclude)!r} leaves nothing of the targets {targets!r}")
    return found, _left_beside([one for one in looked if one.name in found], patterns, exclude, found)


def _left_beside(
    looked: Sequence[Component], patterns: Sequence[str], exclude: Sequence[str], found: Mapping[str, Sequence[str]]
) -> list[str]:  # fmt: skip
    """Says of each pattern which parameters it names that stay as they are, because it names layers as well."""
    notes: list[str] = []
    beside: dict[str, list[str]] = {}
    for one in looked if patterns else ():
        adapted = set(found[one.name])
        others = [path for path in one.covered if path not in adapted]
        beside[one.name] = [path for path in others if not any(names(other, one.name, path) for other in exclude)]
    for pattern in patterns:
        for name, others in beside.items():
            left = [path for path in others if names(pattern, name, path)]
            if left:
                more = f" and {len(left) - 1} more" if len(left) > 1 else ""
                notes.append(
                    f"{pattern!r} names layers, and also {left[0]}{more}, which a module keeps as a parameter of its "
                    "own and which stays as it is; name it by its whole path, or with 're:', to adapt it"
                )
    return notes


def _check_excluded(exclude: Sequence[str], components: Mapping[str, nn.Module], kinds: Collection[str]) -> None:
    """Refuses patterns that leave nothing out because they name no layer at all, adapted or not."""
    if not exclude:
        return
    looked = [Component(name, module, (*kinds, "norm")) for name, module in components.items()]
    known = [(one.name, path) for one in looked for path in (*one.layers, *one.bare)]
    for pattern in exclude:
        if not any(names(pattern, component, path) for component, path in known):
            everything = [f"{component}.{path}".strip(".") for component, path in known]
            raise NoTargets(f"exclude={pattern!r} matches no layer; {nearest_layers(pattern, everything)}")


def _check_kind(pattern: str, looked: Sequence[Component], method: str) -> None:
    """Refuses a pattern that matches norms or bare parameters alone for a method that does not look at them."""
    layer, _, last = pattern.rpartition(".")
    if last in ("weight", "bias") and any(component.named(layer) for component in looked):
        raise NoTargets(f"the target {pattern!r} is a parameter of a layer; name the layer: {layer!r}")
    for component in looked:
        modules = {path: kind_of(layer) for path, layer in component.parts.items()}
        for path, kind in {**modules, **component.bare}.items():
            if kind is not None and kind != "module" and names(pattern, component.name, path):
                raise _unable(path, kind, method)


def _unable(path: str, kind: str, method: str) -> UnsupportedLayer:
    able = sorted(config.__name__ for config in METHODS.values() if kind in config.adapter.kinds)
    return UnsupportedLayer(
        f"{path or 'the model'} is of kind {kind!r}, which {method} cannot change; name another layer, or take a "
        f"method that can: {', '.join(able)}"
    )


def _check_foreign(targets: str | Sequence[str], looked: Sequence[Component]) -> None:
    """Refuses targets that would leave out layers because they are inside PEFT's own."""
    preset = isinstance(targets, str) and targets in PRESETS
    patterns = (targets,) if isinstance(targets, str) else targets
    for one in looked:
        for path in one.foreign:
            if preset or any(names(pattern, one.name, path) for pattern in patterns):
                raise UnsupportedLayer(
                    f"{path} is inside a layer of the package peft, and {targets!r} would leave it out: take PEFT's "
                    "adapters off first (merge_and_unload() or unload()), or load their file with studio.load"
                )


def _patterns(patterns: Sequence[str], looked: Sequence[Component], method: str) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {component.name: set() for component in looked}
    for pattern in patterns:
        hits = {component.name: component.named(pattern) for component in looked}
        if not any(hits.values()):
            _check_kind(pattern, looked, method)
            everything = [f"{one.name}.{path}".strip(".") for one in looked for path in one.layers]
            everything += [f"{one.name}.{path}".strip(".") for one in looked for path in one.covered]
            preset = difflib.get_close_matches(pattern, PRESETS, 1, 0.75)
            meant = f"did you mean the preset {preset[0]!r}? " if preset else ""
            raise NoTargets(f"the target {pattern!r} matches no layer; {meant}{nearest_layers(pattern, everything)}")
        for name, paths in hits.items():
            found[name].update(paths)
    return {component.name: component.ordered(found[component.name]) for component in looked}


def _preset(
    preset: str, looked: Sequence[Component], chosen: Sequence[str] | None, method: str
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    nothing: NoTargets | None = None
    family = family_in({component.name: component.module for component in looked})
    for component in looked:
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


def _preset_paths(preset: str, component: Component, family: Family | None) -> list[str]:
    """What the preset names in a component: by its family's own patterns, or by its structure."""
    if family is not None:
        encoder = bool(family.readers) and "Text" in type(component.module).__name__
        name = component.name or (family.readers[0] if encoder else family.denoiser)
        patterns = family.presets.get(preset, {}).get(name)
        if patterns is not None:
            return [path for path in component.layers if any(matches(pattern, path) for pattern in patterns)]
    return resolve(preset, component.module)


def _check_able(component: Component, paths: Iterable[str], method: str) -> None:
    """Refuses layers that a preset names and the method does not look at."""
    for path in paths:
        if path not in component.layers and component.bare.get(path) not in component.kinds:
            kind = component.bare.get(path) or kind_of(cast(nn.Module, module_at(component.module, path))) or "module"
            raise _unable(path, kind, method)
