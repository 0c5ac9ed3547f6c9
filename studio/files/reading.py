"""From the keys of a file to tensors of ours: everything that happens before anything is put on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from studio.adapters import METHODS, AdapterConfig, Foreign, Site
from studio.adapters.contract.pattern import matches
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from studio.files.detect import Layer, Sorted
from studio.files.format import Settings, Source
from studio.files.kohya import without_core
from studio.files.layout import fits, from_file
from studio.files.metadata import Own
from studio.files.names import Names, shortest_endings
from studio.files.peft_parameters import names_of_parameters
from studio.files.scale import Seen, settle
from studio.files.spelling import Spelling

__all__ = ["Reading", "read_layers"]


@dataclass
class Reading:
    """What a file means on one model.

    Attributes:
        method: registry name. config: the settings. layers: path -> our tensors. keys: path -> keys of the file.
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
        return tuple(sorted(key for keys in groups for key in keys))

    def drop(self, path: str, reason: str) -> None:
        """Ignores a layer after all."""
        del self.layers[path]
        self.ignored |= dict.fromkeys(self.keys.pop(path), reason)


class _Scales:
    """What the file's configs say, made once per component."""

    def __init__(self, source: Source, method: str) -> None:
        self._source, self._method = source, method
        self._made: dict[tuple[str, str], Settings | None] = {}

    def of(self, layer: Layer, label: str) -> Settings | None:
        key = (layer.format.name, label)
        if key not in self._made:
            made = layer.format.settings(self._source, self._method, label)
            self._made[key] = made
        return self._made[key]

    def all(self) -> list[Settings]:
        return [settings for settings in self._made.values() if settings is not None]


def read_layers(names: Names, source: Source, found: Sorted, method: str, own: Own | None) -> Reading:
    """Finds the layers of a model that a file is about, and brings their tensors into our form.

    Args:
        names: the model. source: the file. found: its keys. method: the method to read. own: our entry in it.

    Raises:
        BadFile: a config in the file cannot be read. DoesNotFit: it asks for something that the studio does not do.
    """
    scales = _Scales(source, method)
    stated = own.config if own is not None and own.method == method else None
    reading = Reading(method, stated or METHODS[method](**METHODS[method].needed), ignored=dict(found.strangers))
    names.also = names_of_parameters(names, source.peft or {})
    seen: dict[str, Seen] = {}
    zero: list[str] = []
    differing: dict[str, list[str]] = {}
    foreign = METHODS[method].adapter.foreign
    ranked = issubclass(METHODS[method], RankedConfig)
    for layer in found.layers.values():
        keys = tuple(layer.parts.values())
        made = _resolve(names, layer, method, reading)
        if isinstance(made, str):
            reading.ignored |= dict.fromkeys(keys, made)
            continue
        path, spelling, site = made
        label, local = _local(names, path, layer)
        settings = scales.of(layer, label)
        values = {part: source.tensors[key] for part, key in layer.parts.items()}
        rank = _rank(spelling, values)
        if rank is not None and site.lead:
            rank //= site.lead[0]
        if rank == 0:  # AdaLoRA may leave a layer nothing: one rank of zeros is the same
            rank, values = 1, {part: _with_an_entry(tensor) for part, tensor in values.items()}
        said = Seen(None, None)
        if ranked:
            said = _said(values, rank, settings, local, layer, stated)
        second = None if foreign.inputs is None else _second(foreign, values, settings, local, stated, site)
        tensors = _tensors(spelling, values, site, second, said)
        if not isinstance(tensors, str):
            tensors = _as_ours(layer, foreign, values, settings, site, tensors)
        if isinstance(tensors, str):
            reading.ignored |= dict.fromkeys(keys, tensors)
            continue
        if seen.setdefault(site.path, said) != said:
            reason = f"another component has a layer {site.path!r} too, with another rank or alpha"
            reading.ignored |= dict.fromkeys(keys, reason)
            continue
        reading.layers[path], reading.keys[path] = tensors, keys
        difference = layer.format.way(foreign).differs(site)
        if difference:
            differing.setdefault(difference, []).append(path)
        if said.scale == 0.0:
            zero.append(path)
    _share(reading, names, source, found, foreign)
    config = stated
    if config is None:
        config = _derive(reading, names, scales, found)
    else:
        for settings in scales.all():
            settings.fields()
    reading.notes += [note for settings in scales.all() for note in settings.notes]
    if zero:
        reading.notes.append(f"alpha is 0 at {zero[0]} and {len(zero) - 1} more layers: they change nothing")
    for difference, paths in differing.items():
        others = f" and {len(paths) - 1} more layers" if len(paths) > 1 else ""
        reading.notes.append(f"{difference} ({paths[0]}{others}); here it acts as the layer does")
    if any("base_layer.out_proj" in layer.module for layer in found.layers.values()):
        reading.notes.append("PEFT 0.21 adds the change of an attention's out_proj twice; here it acts once, as saved")
    reading.config = settle(config, seen)
    return reading


def _resolve(names: Names, layer: Layer, method: str, reading: Reading) -> tuple[str, Spelling, Site] | str:
    """The path, spelling and site of a layer, or why it cannot be used."""
    spelling = layer.spelling()
    path = layer.format.find(names, layer.module)
    if path is None:
        return layer.spoiled or _missing(names, layer)
    if isinstance(spelling, str):
        return spelling
    if spelling.method != method:
        return f"it is of the method {spelling.method}, the rest of the file is {method}; an adapter is of one method"
    if path in reading.layers:
        return f"another name in the file means the same layer, {path}"
    try:
        return path, spelling, names.site(path, METHODS[method].adapter.kinds)
    except (UnsupportedLayer, DoesNotFit) as error:
        return str(error)


def _missing(names: Names, layer: Layer) -> str:
    absent = names.absent(layer.module)
    if absent:
        return f"it belongs to {absent}, which this model does not have"
    close = names.nearest(layer.module, layer.format.spell).removeprefix("base_model.model.")
    hint = f"; the nearest is {close!r}" if close else ""
    return f"the model has no layer {layer.module!r}{hint}"


def _local(names: Names, path: str, layer: Layer) -> tuple[str, str]:
    """The component's label, and the module's name inside the component as the file has it."""
    label = names.relative(path)[0]
    return label, layer.module.removeprefix(f"{label}.") if label else layer.module


def _rank(spelling: Spelling, values: Mapping[str, Tensor]) -> int | None:
    """The rank that the tensors have, if any shows it."""
    part = next((part for part in spelling.ranks if part in values), None)
    return int(values[part].shape[0]) if part is not None and values[part].dim() else None


def _with_an_entry(tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() else tensor.new_zeros([max(1, size) for size in tensor.shape])


def _said(
    values: Mapping[str, Tensor],
    rank: int | None,
    settings: Settings | None,
    local: str,
    layer: Layer,
    stated: AdapterConfig | None,
) -> Seen:
    """Rank and scale of a layer: alpha beside it, else the file's config, else ours, else alpha = rank."""
    alpha = values.get("alpha")
    if alpha is not None and alpha.numel() == 1:
        return Seen(rank, 1.0 if rank is None else float(alpha.item()) / rank)
    if layer.format.dialect == "lycoris":
        return Seen(rank, 1.0)
    if settings is not None:
        return settings.seen(local, rank)
    return Seen(rank, 1.0 if stated is None else None)


def _second(
    foreign: Foreign,
    values: Mapping[str, Tensor],
    settings: Settings | None,
    local: str,
    stated: AdapterConfig | None,
    site: Site,
) -> bool | None:
    """Whether a layer has the second of two tensors that share a name; None lets the shape decide."""
    assert foreign.inputs is not None
    field_name, flag = foreign.inputs
    if flag in values:
        return bool(values[flag].item()) if values[flag].numel() == 1 else None
    if settings is not None:
        return settings.second(local)
    if stated is not None:
        return any(matches(pattern, site.path) for pattern in getattr(stated, field_name))
    return None


def _tensors(
    spelling: Spelling, values: Mapping[str, Tensor], site: Site, second: bool | None, said: Seen
) -> dict[str, Tensor] | str:
    """Our tensors of one layer, in fp32, or why there are none."""
    foreign = spelling.foreign
    column = 0 if spelling.dialect == "peft" else 1
    made: dict[str, Tensor] = {}
    for part, tensor in values.items():
        ours = spelling.ours.get(part, ())
        if not ours:
            continue
        if not tensor.is_floating_point():
            return f"its tensor {part} is {str(tensor.dtype).removeprefix('torch.')}, not a floating-point type"
        name = ours[0] if len(ours) == 1 else _chosen(ours, tensor, second, foreign, column, site)
        if name == "down" and "lora_mid.weight" in values:
            tensor = without_core(values["lora_mid.weight"], tensor)
        layout = foreign.layouts.get(name, ("plain", "plain"))[column]
        value = from_file(tensor, layout, site)
        if value is None:
            return (
                f"its tensor {part} has the shape {tuple(tensor.shape)}, which means something else than this method "
                "does (a DoRA magnitude per input, or another layer)"
            )
        value = value.to(torch.float32)
        if column and name in foreign.lycoris_minus:
            value = value + foreign.lycoris_minus[name]
        if column and name in foreign.lycoris_scaled and said.scale is not None:
            value = _unscaled(value, said.scale)
        made[name] = value
    return made


def _chosen(
    ours: tuple[str, ...], tensor: Tensor, second: bool | None, foreign: Foreign, column: int, site: Site
) -> str:
    if second is None:
        rows = fits(tensor, foreign.layouts[ours[0]][column], site, site.rows)
        second = not rows
    return ours[1] if second else ours[0]


def _unscaled(value: Tensor, scale: float) -> Tensor:
    """Finds what gives ``value`` when it is multiplied by the scale, so that saving again gives the same bytes."""
    if scale == 0.0:
        return torch.zeros_like(value)
    exact = (value.double() / scale).float()
    for candidate in (exact, exact.nextafter(torch.tensor(torch.inf)), exact.nextafter(torch.tensor(-torch.inf))):
        exact = torch.where(candidate * scale == value, candidate, exact)
    return exact


def _as_ours(
    layer: Layer,
    foreign: Foreign,
    values: Mapping[str, Tensor],
    settings: Settings | None,
    site: Site,
    tensors: dict[str, Tensor],
) -> dict[str, Tensor] | str:
    """The tensors of a layer in our sense, where the format's program has the method in another, or why not."""
    way, alpha = layer.format.way(foreign), values.get("alpha")
    stated = settings.stated if settings is not None else {}
    if alpha is not None and alpha.numel() == 1:
        stated = {**stated, "alpha": float(alpha.item())}
    reason = way.limit(site)
    if reason:
        return f"{site.path} is no layer for its method there: {reason}"
    try:
        return {name: tensor.contiguous() for name, tensor in way.read(stated, site, tensors).items()}
    except DoesNotFit as error:
        return str(error)


def _share(reading: Reading, names: Names, source: Source, found: Sorted, foreign: Foreign) -> None:
    """Finds the component that shared tensors are for, and what is to be said where they are left out."""
    ours = {theirs: name for name, theirs in foreign.peft_shared.items()}
    components = list(dict.fromkeys(names.paths[path][0] for path in reading.layers))
    for label, parts in found.shared.items():
        meant = [one for one in components if label in (names.labels[one], "")]
        if len(meant) != 1 or not ours.keys() >= parts.keys() or meant[0] in reading.shared:
            reading.ignored |= dict.fromkeys(parts.values(), "no layer of the file uses this shared tensor")
            continue
        tensors = {ours[part]: source.tensors[key].to(torch.float32) for part, key in parts.items()}
        reading.shared[meant[0]] = tensors, tuple(parts.values())
    if ours and reading.layers and len(reading.shared) < len(components):
        missing = " and ".join(ours)
        if reading.ignored:
            raise DoesNotFit(
                f"{source.file} leaves out {missing}, which are drawn for all of its layers together, and not all of "
                f"them fit: {next(iter(reading.ignored.items()))}"
            )
        reading.notes.append(f"{missing} are not in the file; they are drawn anew from its key")


def _derive(reading: Reading, names: Names, scales: _Scales, found: Sorted) -> AdapterConfig:
    """Makes a config for a file that has none of ours, from the fields of its own and from its tensors."""
    config = METHODS[reading.method]
    fields: dict[str, Any] = {}
    for settings in scales.all():
        fields |= settings.fields()
    local = {path: names.paths[path][1] for path in reading.layers}
    every = [name for _, name in names.paths.values()]
    if local:
        fields["targets"] = tuple(shortest_endings(local.values(), every) or local.values())
    foreign = config.adapter.foreign
    for settings in scales.all():
        fields |= foreign.peft_way.config(settings.stated)
    if any(layer.format.dialect == "lycoris" for layer in found.layers.values()):
        fields |= foreign.lycoris_way.config({})
    fields |= foreign.shows({local[path]: tensors for path, tensors in reading.layers.items()})
    if foreign.inputs is not None:
        table = list(foreign.peft_tensors)
        second = [local[path] for path, tensors in reading.layers.items() if table[1] in tensors]
        fields[foreign.inputs[0]] = tuple(shortest_endings(second, local.values()) or second)
    if "use_bias" in foreign.peft_fields:
        fields["use_bias"] = any("bias" in tensors for tensors in reading.layers.values())
    try:
        return config(**fields)
    except (BadConfig, TypeError) as error:
        raise DoesNotFit(f"the file's own config cannot be used: {error}") from None
