"""PEFT's names for adapters on bare parameters (its ``target_parameters``).

PEFT wraps the module that keeps them once per parameter, in the order in which it registered them; so the last one is
outermost, and each one before it is a ``.base_layer`` further in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from studio.adapters.sites.kinds import has_own_forward, kind_of
from studio.errors import DoesNotFit, nearest
from studio.families import named_parameters
from studio.files.names import Names

__all__ = ["names_of_parameters", "wrapped"]


def wrapped(names: Names, path: str) -> str:
    """Returns the name of the module under which PEFT keeps the adapter of the bare parameter at ``path``."""
    owner, _, name = names.paths[path][1].rpartition(".")
    beside = {one.rpartition(".")[2] for one in names.chosen if one.rpartition(".")[0] == path.rpartition(".")[0]}
    return _nested(owner, name, [one for one in names.owners[path]._parameters if one in beside | {name}])


def _nested(owner: str, name: str, order: Sequence[str]) -> str:
    return owner + ".base_layer" * (len(order) - 1 - order.index(name))


def names_of_parameters(names: Names, fields: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a PEFT config's ``target_parameters`` mean: name of a module in the file -> path.

    Args:
        names: the model. fields: the config.

    Raises:
        DoesNotFit: an entry that names no parameter, or one of a layer that PEFT treats in another way.
    """
    wanted: Iterable[str] = fields.get("target_parameters") or ()
    if not isinstance(wanted, Collection) or not all(isinstance(entry, str) for entry in wanted):
        raise DoesNotFit(f"target_parameters={str(wanted)[:60]!r} is no list of the names of parameters")
    used: set[str] = set()
    found: dict[str, str] = {}
    for path, (_, name) in names.paths.items():
        if path in names.owners or not wanted:
            continue
        module = names.module(path)
        hits = {own: _hits(f"{name}.{own}", wanted) for own in module._parameters}
        order = [own for own, hit in hits.items() if hit and module._parameters[own] is not None]
        for own in order:
            used |= hits[own]
            found[_nested(name, own, order)] = _meant(names, path, own, module)
    for entry in wanted:
        if entry not in used:
            close = nearest(entry, [one for part in names.modules.values() for one, _ in named_parameters(part)], 3)
            raise DoesNotFit(
                f"target_parameters names {entry!r}, and no parameter of this model is called so; the nearest are: "
                f"{', '.join(close)}"
            )
    return found


def _hits(parameter: str, wanted: Iterable[str]) -> set[str]:
    return {entry for entry in wanted if parameter == entry or parameter.endswith(f".{entry}")}


def _meant(names: Names, path: str, own: str, module: nn.Module) -> str:
    bare = f"{path}.{own}" if path else own
    if bare in names.owners:
        return bare
    if own == "weight" and kind_of(module) == "linear" and not has_own_forward(module):
        return path
    raise DoesNotFit(
        f"target_parameters names {bare}, a parameter of a {type(module).__name__}, on which PEFT computes something "
        "that its tensors alone do not say"
    )
