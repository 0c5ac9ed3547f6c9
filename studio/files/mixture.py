"""Files whose layers are of several methods: each method's layers are read as its own, and are one adapter together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from studio.adapters import AdapterConfig
from studio.adapters.contract.mixed import Mixed
from studio.files.detect import Contents
from studio.files.format import Source
from studio.files.metadata import Entry
from studio.files.names import Names
from studio.files.reading import Reading, read_layers

__all__ = ["methods_of", "read_mixture"]


def methods_of(source: Source, found: Contents, own: Entry | None) -> tuple[str, ...]:
    """Returns the methods that a file is read as: that of most of its layers first; none where it has no layer.

    A file that states its one method, as PEFT's and the studio's do, is of that one.

    Args:
        source: the file. found: its keys. own: our entry in it.
    """
    stated = "" if own is None else own.method
    methods = found.methods(stated)
    alone = source.peft is not None or (own is not None and "+" not in stated)
    return methods[:1] if alone else methods


def read_mixture(names: Names, source: Source, found: Contents, methods: Sequence[str], own: Entry | None) -> Reading:
    """Reads the layers of every method that a file has; one is the rule.

    Args:
        names: the model. source: the file. found: its keys. methods: as :func:`methods_of` says.
        own: our entry in it.

    Raises:
        BadFile: a config in the file cannot be read. DoesNotFit: it asks for something that the studio does not do.
        Refused: tensors that are used hold NaN, or numbers that nothing can be computed with.
    """
    if len(methods) == 1:
        return read_layers(names, source, found, methods[0], own)
    readings = [
        read_layers(names, source, found.only(one) if one in methods[1:] else found.without(methods[1:]), one, own)
        for one in methods
    ]
    for index, one in enumerate(readings):
        for path in sorted({path for other in readings[:index] for path in other.layers} & one.layers.keys()):
            one.drop(path, f"another name in the file means the same layer, {path}")
    parts = [one for one in readings if one.layers]
    return _together(names, readings, parts) if len(parts) > 1 else _alone(readings, *parts)


def _alone(readings: Sequence[Reading], *parts: Reading) -> Reading:
    """The one method that fits, or the first where none does, with what is ignored of all."""
    ignored = {key: reason for one in readings for key, reason in one.ignored.items()}
    return dataclasses.replace((*parts, readings[0])[0], ignored=ignored)


def _together(names: Names, readings: Sequence[Reading], parts: Sequence[Reading]) -> Reading:
    config = Mixed(parts=tuple(_named(one, names) for one in parts))
    whole = Reading(config.label, config, ignored=_alone(readings).ignored)
    for one in parts:
        whole.layers |= one.placed(names)
        whole.keys |= one.keys
        whole.notes += [note for note in one.notes if note not in whole.notes]
        for component, (_, keys) in one.shared.items():  # the first layer of a component holds what they share
            holder = next(path for path in one.layers if names.paths[path][0] == component)
            whole.keys[holder] = (*whole.keys[holder], *keys)
    counts = " and ".join(f"{len(one.layers)} layers of {one.method}" for one in parts)
    whole.notes.append(f"it is of several methods: {counts}")
    return whole


def _named(reading: Reading, names: Names) -> AdapterConfig:
    """The config of a method, which names its layers one by one."""
    local = tuple(dict.fromkeys(names.paths[path][1] for path in reading.layers))
    return dataclasses.replace(reading.config, targets=local, exclude=())
