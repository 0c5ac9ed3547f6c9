"""The tensors of one layer of a file, brought into our form; and the rank and scale that the file states for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.adapters import AdapterConfig, Site
from studio.adapters.contract.foreign import Foreign
from studio.adapters.contract.pattern import matches
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import DoesNotFit
from studio.files.detect import Layer
from studio.files.format import Settings
from studio.files.layout import fits, from_file
from studio.files.scale import Grade
from studio.files.sound import check_finite, one_number, whole_numbers
from studio.files.spelling import Spelling
from studio.files.stated import check_header_rank, header_alpha

__all__ = ["Match", "unpacked"]


@dataclass(frozen=True)
class Match:
    """A layer of a file, and the layer of the model that it is for.

    Attributes:
        layer: the file's. module: its name inside the component, as the file has it.
        path: where it is in the model. site: the layer there.
        spelling: which method its tensors are of. values: part -> tensor. metadata: the file's.
    """

    layer: Layer
    module: str
    path: str
    site: Site
    spelling: Spelling
    values: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def form(self) -> Foreign:
        """How the program has the method whose names these are."""
        return self.layer.format.form(self.spelling.adapter, self.spelling.dialect)


def unpacked(match: Match, settings: Settings | None, config: AdapterConfig | None) -> tuple[Grade, dict[str, Tensor]]:
    """Returns what a file says about one layer: its rank and scale, and its tensors as ours, in fp32.

    Args:
        match: the layer. settings: what the file's own config says. config: ours, where the file has it.

    Raises:
        DoesNotFit: its tensors have no meaning here. BadFile: they contradict the config that came with them.
    """
    values = match.form.older(match.site, match.values)
    match = match if values is match.values else dataclasses.replace(match, values=values)
    rank, values = _rank(match), match.values
    if rank == 0 and not any(values[part].numel() for part in match.spelling.needs):
        # AdaLoRA may leave a layer nothing: one rank of zeros is the same
        rank, values = 1, {part: _with_an_entry(tensor) for part, tensor in values.items()}
    ranked = issubclass(match.spelling.config, RankedConfig)
    grade = _grade(match, rank, settings, config) if ranked else Grade(None, None)
    second = _second(match, settings, config)
    tensors = {}
    for part, tensor in values.items():
        names = match.spelling.ours.get(part, ())
        if names:
            name = names[0] if len(names) == 1 else _chosen(match, names, tensor, second)
            tensors[name] = _as_ours(match, part, name, tensor, grade)
    return grade, _meant(match, settings, tensors)


def _rank(match: Match) -> int | None:
    """The rank that the tensors have, if any shows it."""
    part = next((part for part in match.spelling.ranks if part in match.values), None)
    if part is None or not match.values[part].dim():
        return None
    rank = int(match.values[part].shape[0])
    return rank // match.site.lead[0] if match.site.lead else rank


def _with_an_entry(tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() else tensor.new_zeros([max(1, size) for size in tensor.shape])


def _grade(match: Match, rank: int | None, settings: Settings | None, config: AdapterConfig | None) -> Grade:
    """Rank and scale of a layer: alpha beside it, else the file's config, else ours, else alpha = rank."""
    alpha = _alpha(match)
    if alpha is not None:
        return Grade(rank, 1.0 if rank is None else alpha / rank)
    if settings is not None:
        return settings.grade(_called(match), rank)
    stated = header_alpha(match.metadata) if config is None and rank is not None else None
    if stated is not None:
        check_header_rank(match.metadata, stated[0], rank or 0)
        return Grade(rank, stated[1] / (rank or 1))
    return Grade(rank, 1.0 if config is None or match.layer.format.dialect == "lycoris" else None)


def _called(match: Match) -> str:
    """What the patterns of a config call a layer: a bare parameter by its own name, not by its module's."""
    if match.site.hosting != "owner":
        return match.module
    module = match.module
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return f"{module}.{match.site.weight_name}"


def _alpha(match: Match) -> float | None:
    alpha = match.values.get("alpha")
    return None if alpha is None else one_number(match.layer.parts["alpha"], alpha)


def _second(match: Match, settings: Settings | None, config: AdapterConfig | None) -> bool | None:
    """Whether a layer has the second of two tensors that share a name; None lets the shape decide."""
    either = match.spelling.adapter.either
    if either is None:
        return None
    if either.flag in match.values:
        return bool(one_number(match.layer.parts[either.flag], match.values[either.flag]))
    if settings is not None:
        return settings.second(match.module)
    if config is not None:
        return any(matches(pattern, match.site.path) for pattern in getattr(config, either.field))
    return None


def _chosen(match: Match, names: tuple[str, ...], tensor: Tensor, second: bool | None) -> str:
    if second is None:
        layout = match.spelling.names.layouts[names[0]]
        second = tensor.dim() > 1 and not fits(tensor, layout, match.site, match.site.rows)
    return names[1] if second else names[0]


def _as_ours(match: Match, part: str, name: str, tensor: Tensor, grade: Grade) -> Tensor:
    """One of our tensors out of the file's."""
    spelling = match.spelling
    if name in spelling.adapter.whole_numbers:
        return whole_numbers(part, tensor)
    if not tensor.is_floating_point():
        raise DoesNotFit(f"its tensor {part} is {str(tensor.dtype).removeprefix('torch.')}, not a floating-point type")
    value = from_file(tensor, spelling.names.layouts.get(name, "plain"), match.site)
    if value is None:
        raise DoesNotFit(
            f"its tensor {part} has the shape {tuple(tensor.shape)}, which means something else than this method "
            "does (a DoRA magnitude per input, or another layer)"
        )
    value, lycoris = value.to(torch.float32), spelling.adapter.lycoris
    if spelling.dialect == "lycoris" and name in lycoris.minus:
        value = value + lycoris.minus[name]
    if spelling.dialect == "lycoris" and name in lycoris.scaled and grade.scale is not None:
        value = _unscaled(value, grade.scale)
    return value


def _unscaled(value: Tensor, scale: float) -> Tensor:
    """Finds what gives ``value`` when it is multiplied by the scale, so that saving again gives the same bytes."""
    if scale == 0.0:
        return torch.zeros_like(value)
    exact = (value.double() / scale).float()
    for candidate in (exact, exact.nextafter(torch.tensor(torch.inf)), exact.nextafter(torch.tensor(-torch.inf))):
        exact = torch.where(candidate * scale == value, candidate, exact)
    return exact


def _meant(match: Match, settings: Settings | None, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in our sense, where the program has the method in another."""
    form, alpha = match.form, _alpha(match)
    stated = settings.stated if settings is not None else {}
    if alpha is not None:
        stated = {**stated, "alpha": alpha}
    peft = match.spelling.adapter.peft
    if match.site.kind != "embedding" and not match.layer.parts.keys().isdisjoint(
        set(peft.embedding.values()) - set(peft.tensors.values())
    ):
        raise DoesNotFit(f"{match.site.path} is no embedding, and its tensors are named as an embedding's")
    reason = form.refusal(match.site)
    if reason:
        raise DoesNotFit(f"{match.site.path} is no layer for its method there: {reason}")
    read = {name: tensor.contiguous() for name, tensor in form.read(stated, match.site, tensors).items()}
    if _numbers(read) < _numbers(tensors):  # a skew matrix has half of its numbers twice: those left out count too
        keyed = {key: match.values[part] for part, key in match.layer.parts.items()}
        check_finite(keyed, keyed, match.site.path)
    return read


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
