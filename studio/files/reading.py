"""From the keys of a file to tensors of ours: everything that happens before anything is put on a model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from studio.adapters import METHODS, AdapterConfig, Site
from studio.adapters.contract.pattern import check_foreign
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadConfig, BadFile, DoesNotFit, Refused, UnsupportedLayer
from studio.families.native import Native
from studio.files.components import component_of
from studio.files.detect import Contents, Layer
from studio.files.endings import shortest_endings
from studio.files.format import Settings, Source
from studio.files.fused import split_rows
from studio.files.metadata import ARCHITECTURE, COMPONENT, Entry, doubts
from studio.files.names import Names
from studio.files.peft_parameters import names_of_parameters
from studio.files.scale import Grade, settle
from studio.files.sound import check_size, fitting, norms
from studio.files.stated import refuse_unused
from studio.files.unpack import Match, unpacked

__all__ = ["Reading", "read_layers"]


@dataclass
class Reading:
    """What a file means on one model.

    Attributes:
        method: registry name, or several ("lora+full"). config: the settings.
        layers: path -> our tensors. keys: path -> keys of the file.
        ignored: key -> why it is not applied. notes: what else is worth knowing.
        shared: component -> the tensors that its layers share, and their keys.
    """

    method: str
    config: AdapterConfig
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shared: dict[str, tuple[dict[str, Tensor], tuple[str, ...]]] = field(default_factory=dict)

    def placed(self, names: Names) -> dict[str, dict[str, Tensor]]:
        """Returns the layers with what they share, which the first layer of a component holds."""
        placed = dict(self.layers)
        for component, (tensors, _) in self.shared.items():
            first = next((path for path in placed if names.paths[path][0] == component), None)
            if first is not None:
                placed[first] = {**placed[first], **tensors}
        return placed

    def applied(self) -> tuple[str, ...]:
        """Returns the keys that are used, sorted."""
        groups = (*self.keys.values(), *(keys for _, keys in self.shared.values()))
        return tuple(sorted({key for keys in groups for key in keys}))

    def ignore(self, layer: Layer, reason: str) -> None:
        """Ignores a layer of the file."""
        self.ignored |= dict.fromkeys(layer.parts.values(), reason)

    def drop(self, path: str, reason: str) -> None:
        """Ignores a layer after all, and those that are one with it in the file."""
        if path not in self.layers:
            return
        keys = self.keys[path]
        for other in [one for one, own in self.keys.items() if own == keys]:
            del self.layers[other], self.keys[other]
        self.ignored |= dict.fromkeys(keys, reason)


class _Statements:
    """What the file's configs say, made once per component."""

    def __init__(self, source: Source, method: str) -> None:
        self._source, self._method = source, method
        self._made: dict[tuple[str, ...], Settings | None] = {}

    def of(self, layer: Layer, label: str) -> Settings | None:
        names = (component_of(layer.module), label)
        key = (layer.format.name, *names)
        if key not in self._made:
            self._made[key] = layer.format.settings(self._source, self._method, names)
        return self._made[key]

    def all(self) -> list[Settings]:
        return [settings for settings in self._made.values() if settings is not None]


def read_layers(names: Names, source: Source, found: Contents, method: str, own: Entry | None) -> Reading:
    """Finds the layers of a model that a file is about, and brings their tensors into our form.

    Args:
        names: the model. source: the file. found: its keys. method: the method to read. own: our entry in it.

    Raises:
        BadFile: a config in the file cannot be read. DoesNotFit: it asks for something that the studio does not do.
        Refused: tensors that are used hold NaN, or numbers that nothing can be computed with.
    """
    statements = _Statements(source, method)
    members = () if own is None or own.config is None else own.config.members
    config = next((member for member in members if member.method == method), None)
    _check_patterns(config, source)
    reading = Reading(method, config or METHODS[method].usual(), ignored=dict(found.strangers))
    names.also = names_of_parameters(names, source.peft or {})
    names.inside = source.metadata.get(COMPONENT, "")
    names.architecture = source.metadata.get(ARCHITECTURE, "")
    grades: dict[str, Grade] = {}
    read: list[Match] = []
    for layer in found.layers.values():
        try:
            placed = _placed(names, source, layer, reading, statements, config)
        except (UnsupportedLayer, DoesNotFit) as error:
            reading.ignore(layer, str(error))
            continue
        other = next((one.site.path for one, grade, _ in placed if grades.get(one.site.path, grade) != grade), None)
        if other is not None:
            reading.ignore(layer, f"another component has a layer {other!r} too, with another rank or alpha")
            continue
        for match, grade, tensors in placed:
            grades[match.site.path] = grade
            reading.layers[match.path], reading.keys[match.path] = tensors, tuple(layer.parts.values())
            read.append(match)
    _share(reading, names, source, found)
    stated = _noted(reading, source, found, statements, read, grades, config)
    config = config or _derived(reading, names, statements, stated, read)
    _settle(reading, source, own, config, grades)
    _check_sizes(reading, names, source, read)
    return reading


def _placed(
    names: Names,
    source: Source,
    layer: Layer,
    reading: Reading,
    statements: _Statements,
    config: AdapterConfig | None,
) -> list[tuple[Match, Grade, dict[str, Tensor]]]:
    """The layers of the model that a layer of the file is for, with what it says about each.

    Raises:
        DoesNotFit: there are none, or its tensors have no meaning for them. UnsupportedLayer: as :func:`_match`.
    """
    match, native = _match(names, source, layer, reading)
    settings = statements.of(layer, names.relative(match.path)[0])
    grade, tensors = _unpacked(match, settings, config, source)
    if native is None or (len(native.paths) == 1 and not native.swapped):
        return [(match, grade, tensors)]
    with fitting(lambda: f"the tensors {_shapes(match)} of its layer"):
        sites = {path: names.site(path, match.spelling.adapter.kinds) for path in native.paths}
        adapter, rows = match.spelling.adapter, [site.rows for site in sites.values()]
        parts = split_rows(native, adapter, match.form.fixed, grade, tensors, rows)
        return [(dataclasses.replace(match, path=path, site=sites[path]), own, part) for path, own, part in parts]


def _check_patterns(config: AdapterConfig | None, source: Source) -> None:
    if config is not None:
        listed = [pattern for field in config.patterns for pattern in getattr(config, field)]
        check_foreign(listed, f"{source.file} says")


def _noted(
    reading: Reading,
    source: Source,
    found: Contents,
    statements: _Statements,
    read: Sequence[Match],
    grades: Mapping[str, Grade],
    own: AdapterConfig | None,
) -> list[dict[str, Any]]:
    """Returns the fields that the file states, once what nothing used is noted or refused."""
    stated = [settings.fields() for settings in statements.all()]  # which notes what is not used
    reading.notes += [note for settings in statements.all() for note in settings.notes]
    reading.notes += _notes(found, read, grades)
    reading.notes += [] if own is None else _contradicted(own, statements, stated)
    if read and source.peft is None:
        refuse_unused(source, [one.component for one in statements.all()], found.layers)
    return stated


def _settle(
    reading: Reading,
    source: Source,
    own: Entry | None,
    config: AdapterConfig,
    grades: Mapping[str, Grade],
) -> None:
    """Gives a reading its config; notes what another program has changed."""
    reading.config = settle(_retargeted(config, list(grades)), grades)
    members = () if own is None or own.config is None else own.config.members
    if any(config is member for member in members) and reading.config is not config:
        reading.notes.append("the file states other ranks or alphas than the studio's own entry in it; they count")
    reading.notes += doubts(source, own)


def _check_sizes(reading: Reading, names: Names, source: Source, read: Sequence[Match]) -> None:
    """Refuses numbers with which nothing finite can be computed."""
    config, shared = reading.config, {one: norms(tensors.values()) for one, (tensors, _) in reading.shared.items()}
    for match in read:
        component = names.paths[match.path][0]
        scale = config.scale_at(match.site.path) if isinstance(config, RankedConfig) else 1.0
        norm = norms(reading.layers[match.path].values()) * shared.get(component, 1.0)
        keys = (*reading.keys[match.path], *(reading.shared[component][1] if component in shared else ()))
        check_size(scale, norm, match.site, source, keys)


def _contradicted(own: AdapterConfig, statements: _Statements, stated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Says where the file's own config has another value than the studio's entry."""
    said: dict[str, Any] = {}
    for fields, settings in zip(stated, statements.all(), strict=True):
        said.update(fields)
        said.update(own.adapter.peft.settings.config(settings.stated))
    for name, value in vars(own).items():
        if name not in said or name in ("rank", "alpha") or isinstance(value, (tuple, Mapping)):
            continue  # ranks are settled layer by layer, and patterns have several forms
        if said[name] != value and (said[name] or value):  # nothing may be written as None, 0 or False
            other = f"{name}={said[name]!r}, and the studio's entry in it {value!r}"
            yield f"the file's config says {other}: one of them was changed, and what it computes may be something else"


def _retargeted(config: AdapterConfig, paths: Sequence[str]) -> AdapterConfig:
    """Names the layers in the place of targets that only ``re`` could look for: no expression of a file is run so."""
    try:
        check_foreign([*([config.targets] if isinstance(config.targets, str) else config.targets), *config.exclude], "")
    except BadFile:
        return dataclasses.replace(config, targets=tuple(paths), exclude=())
    return config


def _unpacked(
    match: Match, settings: Settings | None, config: AdapterConfig | None, source: Source
) -> tuple[Grade, dict[str, Tensor]]:
    """As :func:`unpacked`, with the file's name where a number is refused."""
    try:
        with fitting(lambda: f"the tensors {_shapes(match)} of its layer"):
            return unpacked(match, settings, config)
    except Refused as error:
        raise Refused(f"{source.file}: {error}") from None


def _shapes(match: Match) -> dict[str, tuple[int, ...]]:
    return {part: tuple(tensor.shape) for part, tensor in match.values.items()}


def _match(names: Names, source: Source, layer: Layer, reading: Reading) -> tuple[Match, Native | None]:
    """The layer of the model that a layer of the file is for, the first of several where they are one there.

    Raises:
        DoesNotFit: there is none, or its tensors are of no method, or of another one than the rest. UnsupportedLayer:
            the method cannot change it.
    """
    spelling = layer.spelling()
    path = layer.format.find(names, layer.module)
    native = names.find_native(layer.module) if path is None else None
    paths = (path,) if path is not None else () if native is None else native.paths
    if not paths:
        raise DoesNotFit(layer.spoiled or _missing(names, layer))
    if isinstance(spelling, str):
        raise DoesNotFit(spelling)
    if spelling.method != reading.method:
        raise DoesNotFit(
            f"it is of the method {spelling.method}, the rest of the file is {reading.method}; an adapter is of one "
            "method"
        )
    taken = next((one for one in paths if one in reading.layers), None)
    if taken is not None:
        raise DoesNotFit(f"another name in the file means the same layer, {taken}")
    label = names.relative(paths[0])[0]
    module = layer.module.removeprefix(f"{label or component_of(layer.module)}.")
    found = {part: source.tensors[key] for part, key in layer.parts.items()}
    values = layer.format.turned(names, paths[0], found)
    site = _whole_site([names.site(path, spelling.adapter.kinds) for path in paths])
    return Match(layer, module, paths[0], site, spelling, values, source.metadata), native


def _whole_site(sites: Sequence[Site]) -> Site:
    """The layer, or the one that has the outputs of all of them."""
    if len(sites) == 1:
        return sites[0]
    whole = copy.copy(sites[0])
    whole.rows = sum(site.rows for site in sites)
    return whole


def _notes(found: Contents, read: Sequence[Match], grades: Mapping[str, Grade]) -> Iterator[str]:
    """What is worth knowing about the layers that were read."""
    zero = [match.path for match in read if grades[match.site.path].scale == 0.0]
    if zero:
        yield f"alpha is 0 at {zero[0]} and {len(zero) - 1} more layers: they change nothing"
    differing: dict[str, list[str]] = {}
    for match in read:
        difference = match.form.differs(match.site)
        if difference:
            differing.setdefault(difference, []).append(match.path)
    for difference, paths in differing.items():
        others = f" and {len(paths) - 1} more layers" if len(paths) > 1 else ""
        yield f"{difference} ({paths[0]}{others}); here it acts as the layer does"
    if any("split_qkv" in match.metadata.get("ss_network_args", "") for match in read):
        yield (
            "it was trained with split_qkv: sd-scripts saves the parts of such a layer together and their alpha as it "
            "was, so that it acts 3 or 4 times weaker than in training"
        )
    if any("base_layer.out_proj" in module for module in found.layers):
        yield "PEFT 0.21 adds the change of an attention's out_proj twice; here it acts once, as saved"


def _missing(names: Names, layer: Layer) -> str:
    absent = names.absent(layer.module)
    if absent:
        return f"it belongs to {absent}, which this model does not have"
    close = names.nearest(layer.module, layer.format.spell).removeprefix("base_model.model.")
    hint = f"; the nearest is {close!r}" if close else ""
    return f"the model has no layer {layer.module!r}{hint}"


def _share(reading: Reading, names: Names, source: Source, found: Contents) -> None:
    """Finds the component that shared tensors are for, and what is to be said where they are left out."""
    ours = {theirs: name for name, theirs in METHODS[reading.method].adapter.peft.shared.items()}
    components = list(dict.fromkeys(names.paths[path][0] for path in reading.layers))
    copies: list[dict[str, str]] = []
    for label, parts in found.shared.items():
        meant = [one for one in components if label in (names.labels[one], "")]
        if _module(label) in found.layers:
            copies.append(parts)
        elif len(meant) != 1 or not ours.keys() >= parts.keys() or meant[0] in reading.shared:
            reading.ignored |= dict.fromkeys(parts.values(), "no layer of the file uses this shared tensor")
        else:
            tensors = {ours[part]: source.tensors[key].to(torch.float32) for part, key in parts.items()}
            reading.shared[meant[0]] = tensors, tuple(parts.values())
    for parts in copies:
        _account_for_copies(reading, source, parts, ours)
    if ours and reading.layers and len(reading.shared) < len(components):
        missing = " and ".join(ours)
        if reading.ignored:
            raise DoesNotFit(
                f"{source.file} leaves out {missing}, which are drawn for all of its layers together, and not all of "
                f"them fit: {next(iter(reading.ignored.items()))}"
            )
        reading.notes.append(f"{missing} are not in the file; they are drawn anew from its key")


def _module(label: str) -> str:
    """The layer that a shared tensor stands with, as layers are named."""
    return label.removeprefix("base_model.model.")


def _account_for_copies(reading: Reading, source: Source, parts: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Uses the copies of shared tensors that stand with a layer, if they are copies."""
    for part, key in parts.items():
        owners = [label for label, (tensors, _) in reading.shared.items() if ours.get(part) in tensors]
        same = [
            label for label in owners if torch.equal(reading.shared[label][0][ours[part]], source.tensors[key].float())
        ]
        if same:
            tensors, keys = reading.shared[same[0]]
            reading.shared[same[0]] = tensors, (*keys, key)
        else:
            reading.ignored[key] = "it is no copy of the tensor that all layers of the file share"


def _derived(
    reading: Reading,
    names: Names,
    statements: _Statements,
    stated: Sequence[Mapping[str, Any]],
    read: Sequence[Match],
) -> AdapterConfig:
    """Makes a config for a file that has none of ours, from the fields of its own and from its tensors."""
    config, adapter = METHODS[reading.method], METHODS[reading.method].adapter
    fields: dict[str, Any] = {}
    for own in stated:
        fields |= own
    local = {path: names.paths[path][1] for path in reading.layers}
    every = [name for _, name in names.paths.values()]
    if local:
        fields["targets"] = tuple(shortest_endings(local.values(), every) or local.values())
    with fitting("the fields of the file's config and its tensors"):
        for settings in statements.all():
            fields |= {**adapter.peft.fixed, **adapter.peft.settings.config(settings.stated)}
        for match in read:
            fields |= match.form.fixed
        if reading.layers:
            fields |= adapter.shown({local[path]: tensors for path, tensors in reading.layers.items()})
    if adapter.either is not None:
        table = list(adapter.peft.tensors)
        second = [local[path] for path, tensors in reading.layers.items() if table[1] in tensors]
        fields[adapter.either.field] = tuple(shortest_endings(second, local.values()) or second)
    try:
        return config(**fields)
    except (BadConfig, TypeError) as error:
        raise DoesNotFit(f"the file's own config cannot be used: {error}") from None
