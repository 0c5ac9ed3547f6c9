"""The files that become one: how strongly each acts, and the adapters that they are, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.adapters import Site, Strength
from studio.adapters.blend import check_constant
from studio.adapters.combine import check_changes_weights
from studio.adapters.combining.layer import Part
from studio.adapters.contract.strength import StrengthLike, as_strength
from studio.adapters.targets.block_weights import Blocks
from studio.adapters.targets.unmatched import check_blocks
from studio.errors import BadConfig, DoesNotFit
from studio.families import named_parts
from studio.files.loose import Loose, adapters_of
from studio.files.names import Names

__all__ = ["Parent", "layers_of", "strength_of"]


@dataclass(frozen=True)
class Parent:
    """A file that becomes a part of another one.

    Args:
        file: an adapter file. strength: a number, a :class:`~studio.Strength`, or diffusers' table of blocks.
        name: what it is called; None: as it says, or as its file is called.
        blocks: how much of it acts where, as :func:`studio.block_weights` reads it; None: all alike.
    """

    file: str | Path
    strength: StrengthLike = 1.0
    name: str | None = None
    blocks: str | Sequence[float] | Mapping[str, Any] | None = None


def strength_of(name: str, parent: Parent, loose: Loose) -> Strength:
    """Returns how strongly a file acts, with the blocks that were said as patterns of its layers.

    Args:
        name: what it is called. parent: what was said. loose: what it holds.

    Raises:
        BadConfig: an impossible strength, one of blocks or components that are not there, or blocks said twice.
        DoesNotFit: a strength that differs by sample, moment or place.
    """
    if isinstance(parent.strength, Mapping) and parent.blocks is not None:
        raise BadConfig(f"{name!r} has a table of strengths, which says what acts where, and blocks too: give one")
    names = Names(loose.model)
    inside = _inside(loose, names)
    said = parent.strength if isinstance(parent.strength, Mapping) else parent.blocks
    plain = Strength() if isinstance(parent.strength, Mapping) else as_strength(parent.strength)
    if said is not None:
        family = names.family
        denoiser = names.modules.get("" if family is None else family.denoiser, names.modules.get(""))
        modules = [] if denoiser is None else [path for path, _ in named_parts(denoiser) if path]
        blocks = {**dict(plain.blocks), **Blocks(inside, modules, family).weights(said)}
        components: dict[str, Any] = dict(plain.components)
        plain = Strength(
            plain.value, blocks=blocks, samples=plain.samples, schedule=plain.schedule, mask=plain.mask, **components
        )
    check_blocks(name, plain, inside)
    check_constant(name, plain, "one adapter has one strength for all")
    return plain


def layers_of(held: Mapping[str, Loose], strengths: Mapping[str, Strength]) -> dict[str, tuple[Site, list[Part]]]:
    """Returns path -> the layer, and what acts there with which strength, in the order of the base.

    Args:
        held: name -> what a file holds. strengths: of each.

    Raises:
        DoesNotFit: an adapter that changes no weight, one that follows the base's tied weights, or strengths that are
            0 everywhere.
    """
    found: dict[str, tuple[Site, list[Part]]] = {}
    places: dict[str, int] = {}
    for name, loose in held.items():
        names = Names(loose.model)
        _check_untied(name, loose, names)
        places |= {path: place for place, path in enumerate(names.paths) if path in loose.layers}
        for path, adapter in adapters_of(loose, names).items():
            check_changes_weights(name, adapter)
            number = strengths[name].at(*names.paths[path])
            if number:
                found.setdefault(path, (adapter.site, []))[1].append(Part(name, adapter, number))
    if not found:
        raise DoesNotFit("the strengths are 0 at every layer, so nothing is left to combine")
    return {path: found[path] for path in sorted(found, key=lambda path: places[path])}


def _inside(loose: Loose, names: Names) -> dict[str, list[str]]:
    """Component -> its layers that a file changes, by their names in it."""
    found: dict[str, list[str]] = {}
    for path in loose.layers:
        component, own = names.paths[path]
        found.setdefault(component, []).append(own)
    return found


def _check_untied(name: str, loose: Loose, names: Names) -> None:
    """Refuses an adapter that follows tied weights: it is for a model."""
    for component, paths in _inside(loose, names).items():
        for member in loose.config.members:
            mine = [path for path in paths if loose.config.at(path) is member]
            if member.adapter.joined(names.modules[component], mine):
                raise DoesNotFit(
                    f"{name!r} is of {member.method}, which follows weights that layers share: load it on its base and "
                    "combine it there (studio.combine)"
                )
