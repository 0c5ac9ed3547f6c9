"""Layers that no picture depends on: what a family says about them, kept away from adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from studio.adapters.contract.pattern import is_expression, matches
from studio.adapters.targets.presets import PRESETS
from studio.adapters.targets.unmatched import names
from studio.errors import UnsupportedLayer
from studio.families import family_in, named_parts

__all__ = ["heard", "silent_layers"]


def silent_layers(components: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """Returns the paths of layers that no picture depends on, each with the reason, by component.

    Args:
        components: component name to module; ``{"": model}`` for a model by itself.

    Example:
        >>> silent_layers({"": nn.Linear(2, 2)})
        {}
    """
    family = family_in(components)
    if family is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for name, module in components.items():
        for silent in family.silent(name or family.denoiser, module):
            paths = [path for path, _ in named_parts(module) if ".adapters." not in f".{path}."]
            hit = [path for path in paths if any(matches(pattern, path) for pattern in silent.targets)]
            found.setdefault(name, {}).update(dict.fromkeys(hit, silent.reason))
    return found


def heard(
    components: Mapping[str, nn.Module], targets: str | Sequence[str], paths: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Leaves out the layers that no picture depends on.

    Args:
        components: component name to module.
        targets: what was asked for.
        paths: what that named, by component.

    Returns:
        The layers that are left, and a note for each reason for which some are not.

    Raises:
        UnsupportedLayer: one was asked for by its own name, or nothing is left.
    """
    silent = silent_layers(components)
    left = {name: [path for path in found if path not in silent.get(name, {})] for name, found in paths.items()}
    out = [(name, path) for name, found in paths.items() for path in found if path in silent.get(name, {})]
    patterns = () if isinstance(targets, str) and targets in PRESETS else targets
    named = [
        (name, path)
        for name, path in out
        for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
        if not is_expression(pattern) and pattern in (path, f"{name}.{path}") and names(pattern, name, path)
    ]
    if named or (out and not any(left.values())):
        name, path = (named or out)[0]
        raise UnsupportedLayer(
            f"no picture depends on {f'{name}.{path}'.strip('.')}: {silent[name][path]}; an adapter there would have "
            "no effect, name other layers"
        )
    notes: dict[str, list[str]] = {}
    for name, path in out:
        notes.setdefault(silent[name][path], []).append(f"{name}.{path}".strip("."))
    return {name: found for name, found in left.items() if found}, [
        f"left out: {found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "") + f": {reason}"
        for reason, found in notes.items()
    ]
