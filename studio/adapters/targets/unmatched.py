"""Patterns that name nothing: refused wherever a caller gives patterns, with what is nearest to them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from studio.adapters.contract.adapter import AdapterConfig
from studio.adapters.contract.pattern import matches
from studio.adapters.contract.strength import Strength
from studio.errors import BadConfig, NoTargets, nearest

__all__ = ["check_blocks", "check_tables", "names", "nearest_layers"]


def names(pattern: str, component: str, path: str) -> bool:
    """Says whether a pattern names a path in a component, with the component in front or without."""
    return matches(pattern, path) or (component != "" and matches(pattern, f"{component}.{path}"))


def nearest_layers(pattern: str, paths: Sequence[str]) -> str:
    """The nearest layers as half a sentence, each kind once: a pattern is compared with the last words of a path too.

    Args:
        pattern: what matches none of them. paths: the layers that it could name.
    """
    inside = f"{pattern}."
    if any(path.startswith(inside) or f".{inside}" in path for path in paths):
        return f"the layers inside it are named by '{inside}*'"
    if pattern.endswith(".*"):
        close = difflib.get_close_matches(pattern[:-2], _runs(paths, pattern.count(".")), 1, 0.75)
        if close:
            return f"the nearest is '{close[0]}.*'"
    ends: dict[str, str] = {}
    words = pattern.removeprefix("re:").count(".") + 1
    for path in paths:
        ends.setdefault(".".join(path.split(".")[-words:]), path)
    if not ends:
        return "the model has no layer that can be adapted"
    return f"the nearest layers are: {', '.join(ends[end] for end in nearest(pattern, ends))}"


def _runs(paths: Iterable[str], count: int) -> set[str]:
    """All that ``count`` words of a path in a row are, the last word left out: what holds its layers."""
    words = [path.split(".")[:-1] for path in paths]
    return {".".join(one[at : at + count]) for one in words for at in range(len(one) - count + 1)}


def check_tables(config: AdapterConfig, paths: Iterable[str]) -> None:
    """Checks that the patterns in a config's own fields (ranks, block sizes, feed-forwards) name adapted layers.

    Args:
        config: the method and its settings. paths: the adapted layers, as their component knows them.

    Raises:
        NoTargets: one of them names none.
    """
    adapted = list(paths)
    for field in config.patterns:
        for pattern in getattr(config, field):
            if not any(matches(pattern, path) for path in adapted):
                raise NoTargets(
                    f"{type(config).__name__}({field}=...): the pattern {pattern!r} matches no adapted layer; "
                    f"{nearest_layers(pattern, adapted)}"
                )


def check_blocks(name: str, strength: Strength, layers: Mapping[str, Iterable[str]]) -> None:
    """Checks that all that a strength names is there.

    Args:
        name: the adapter. strength: its strength.
        layers: component -> the layers that the adapter changes there; other components are there with none.

    Raises:
        BadConfig: a component that the model does not have, or a pattern of blocks that names no layer of the adapter.
    """
    for component, _ in strength.components:
        if component not in layers:
            raise BadConfig(
                f"the strength of {name!r} names the component {component!r}; adapters are attached to: "
                f"{', '.join(filter(None, layers)) or 'a model without components'}"
            )
    own = {component: list(paths) for component, paths in layers.items()} if strength.blocks else {}
    for pattern, _ in strength.blocks:
        if not any(names(pattern, component, path) for component, paths in own.items() for path in paths):
            everything = [f"{component}.{path}".strip(".") for component, paths in own.items() for path in paths]
            raise BadConfig(
                f"the strength of {name!r} names blocks={{{pattern!r}: ...}}, which matches none of its layers; "
                f"{nearest_layers(pattern, everything)}"
            )
