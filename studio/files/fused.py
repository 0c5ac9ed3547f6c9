"""Layers that are one matrix natively and several in diffusers: an adapter of the one on the others, and back.

A method says which of its tensors make which rows of its change (:meth:`~studio.adapters.Adapter.cut`), so that every
part is of the method that the whole is of. A LoRA has more freedom: ``ΔW = s · up @ down`` of a fused layer is that of
its parts, stacked by rows. Fused to split is exact: every part has its rows of ``up`` and the shared ``down``, or its
block of both where ``up`` is block-diagonal. Split to fused is exact too: parts that share ``down`` keep it, others
make ``up`` block-diagonal, by which their ranks add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter
from studio.adapters.contract.rows import Rows
from studio.errors import DoesNotFit
from studio.families.native import Native
from studio.files.names import Names
from studio.files.scale import Grade
from studio.files.spelling import Spelling, recognise, with_axes

__all__ = ["DOWN", "UP", "gathered", "mixed_ranks", "split_rows"]

Parts = Mapping[str, Tensor]
DOWN: Final = "lora_down.weight"
UP: Final = "lora_up.weight"
BIAS: Final = "diff_b"
MAGNITUDE: Final = "dora_scale"
WINDOW: Final = "lokr_window"
_PAIR: Final = {DOWN, UP, "alpha"}
_BESIDE: Final[tuple[str, ...]] = ("bias", "magnitude")
"""What a pair has per output beside it: the change of a bias, and DoRA's length of every row."""
_OURS: Final = {"down", "up", *_BESIDE}


# -- fused to split ----------------------------------------------------------------------------------------------------


def split_rows(
    native: Native,
    adapter: type[Adapter],
    fixed: Mapping[str, Any],
    grade: Grade,
    tensors: Parts,
    rows: Sequence[int],
) -> Iterator[tuple[str, Grade, dict[str, Tensor]]]:
    """Gives every layer its part of an adapter of a fused one; those that a LoRA does not change get none.

    Args:
        native: the fused layer. adapter: its method's. fixed: fields of the config that the file's program fixes.
        grade: its rank and scale. tensors: ours, of all outputs. rows: outputs of each of its layers here.

    Raises:
        DoesNotFit: the method has no parts of outputs, or the tensors have another number of rows.
    """
    if {"down", "up"} <= tensors.keys() <= _OURS:
        yield from _split_pair(native, grade, tensors, rows)
        return
    try:
        if native.swapped:
            tensors = _halves_swapped(adapter, tensors, sum(rows), fixed)
        for path, place in zip(native.paths, _places(rows), strict=True):
            yield path, grade, adapter.cut(tensors, place, fixed)
    except DoesNotFit as error:
        raise DoesNotFit(f"it is {_said(native)}: {error}") from None


def _places(rows: Sequence[int]) -> list[Rows]:
    ends = list(itertools.accumulate(rows))
    return [Rows(end - count, end, ends[-1]) for count, end in zip(rows, ends, strict=True)]


def _halves_swapped(adapter: type[Adapter], tensors: Parts, total: int, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
    """What makes the same outputs with the two halves of them in the other order."""
    halves = [adapter.cut(tensors, place, fixed) for place in _places([total // 2, total - total // 2])]
    return adapter.rejoined(halves[::-1], _places([total - total // 2, total // 2]))


def _split_pair(
    native: Native, grade: Grade, tensors: Parts, rows: Sequence[int]
) -> Iterator[tuple[str, Grade, dict[str, Tensor]]]:
    """The same of a low-rank pair: ranks that only one of the layers uses are that layer's alone."""
    if len(tensors["up"]) != sum(rows):
        raise DoesNotFit(
            f"it is {_said(native)}, which have {sum(rows)} outputs together, and its tensors have {len(tensors['up'])}"
        )
    if len(tensors["down"]) != tensors["up"].shape[1]:
        shapes = {name: tuple(one.shape) for name, one in tensors.items()}
        raise DoesNotFit(f"it is {_said(native)}, and its two tensors have other ranks: {shapes}")
    turned = {name: _swapped(one) if native.swapped and name != "down" else one for name, one in tensors.items()}
    ups = turned["up"].split(list(rows))
    beside = {name: turned[name].split(list(rows)) for name in _BESIDE if name in turned}
    for index, (path, up, (begin, end)) in enumerate(zip(native.paths, ups, _ranks(ups), strict=True)):
        own = {name: parts[index].clone() for name, parts in beside.items()}
        if begin == end and not any(bool(part.any()) for part in own.values()):
            continue
        begin, end = (begin, end) if begin < end else (0, up.shape[1])
        pair = {"down": turned["down"][begin:end].clone(), "up": up[:, begin:end].clone()}
        yield path, Grade(end - begin, grade.scale), {**pair, **own}


def _said(native: Native) -> str:
    """What a native layer is here, in words."""
    if len(native.paths) == 1:
        return f"{native.paths[0]} with its halves swapped" if native.swapped else native.paths[0]
    return f"the layers {', '.join(native.paths)} in one"


def _swapped(tensor: Tensor) -> Tensor:
    """The halves of the rows in the other order."""
    return torch.cat(tensor.chunk(2)[::-1])


def _ranks(ups: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Which of the ranks each part uses: all where two share one, else a range of its own, perhaps none."""
    rank, count = ups[0].shape[1], len(ups)
    used = torch.stack([(up != 0).any(0) for up in ups])
    whole = [(0, rank) if bool(own.any()) or not bool(used.any()) else (0, 0) for own in used]
    if bool((used.sum(0) > 1).any()):
        return whole
    width = rank // count
    equal = [(width * index, width * (index + 1)) for index in range(count)]
    if rank == width * count and all(_inside(own, place) for own, place in zip(used, equal, strict=True)):
        return equal
    ends = [int(own.nonzero().max()) + 1 if bool(own.any()) else 0 for own in used]
    places = [(max(ends[:index], default=0), end) if end else (0, 0) for index, end in enumerate(ends)]
    last = max(range(count), key=lambda index: ends[index])
    places[last] = (places[last][0], rank)
    apart = bool(used.any()) and all(_inside(own, place) for own, place in zip(used, places, strict=True))
    return places if apart else whole


def _inside(used: Tensor, place: tuple[int, int]) -> bool:
    outside = used.clone()
    outside[place[0] : place[1]] = False
    return not bool(outside.any())


# -- split to fused ----------------------------------------------------------------------------------------------------


def gathered(
    names: Names, layers: Mapping[str, Parts], spell: Callable[[Names, str], str], format: str
) -> dict[str, Parts]:
    """Returns a file's layers by their names in it, those that are one there in one.

    Args:
        names: the model's. layers: path -> kohya's parts of its adapter. spell: the name of a path in the file.
        format: the registry name of the file's.

    Raises:
        DoesNotFit: layers that are one there have adapters that are not one.
    """
    found: dict[str, Parts] = {}
    for path, parts in layers.items():
        whole = names.native[path] if names.translates(path, format) else Native("", (path,))
        name = spell(names, path)
        if name in found:
            continue  # with the first of its layers
        alone = len(whole.paths) == 1 and not whole.swapped
        if alone and WINDOW in parts:
            raise DoesNotFit(f"LyCORIS has no rows of a larger product, as {path} is; save with format='diffusers'")
        found[name] = parts if alone else _fused(names, whole, layers)
    return found


def _fused(names: Names, native: Native, layers: Mapping[str, Parts]) -> dict[str, Tensor]:
    """The parts of the LoRA of a fused layer; a layer that has none gets rows of zeros."""
    given = {path: layers[path] for path in native.paths if path in layers}
    rows = {path: names.site(path).rows for path in native.paths}
    try:
        if _are_pairs(given, rows):
            return _fused_pairs(native, given, rows)
        return _fused_parts(native, given, rows)
    except DoesNotFit as error:
        raise DoesNotFit(f"natively {native.name} is {_said(native)}: {error}; save with format='diffusers'") from None


def _fused_parts(native: Native, given: Mapping[str, Parts], rows: Mapping[str, int]) -> dict[str, Tensor]:
    """The parts of the adapter of a fused layer, of which those of its layers are rows."""
    first, places = next(iter(given.values())), _places(list(rows.values()))
    spelling = recognise([with_axes(part, tensor.dim()) for part, tensor in first.items()])
    if isinstance(spelling, str) or given.keys() != rows.keys() or not _alike(given):
        raise DoesNotFit("not all of them have an adapter of the same method with the same tensors")
    called = _called(spelling, first)
    beside = {part: tensor for part, tensor in first.items() if part not in called.values()}
    if any(not torch.equal(parts[part], beside[part]) for parts in given.values() for part in beside):
        raise DoesNotFit(f"their {', '.join(beside)} differ, and one layer has one of each")
    ours = [{name: parts[part] for name, part in called.items() if part in parts} for parts in given.values()]
    adapter = spelling.adapter
    whole = adapter.rejoined(ours, places)
    if native.swapped:
        whole = _halves_swapped(adapter, whole, places[0].total, adapter.lycoris.fixed)
    return {**beside, **{called[name]: tensor for name, tensor in whole.items()}}


def _are_pairs(given: Mapping[str, Parts], rows: Mapping[str, int]) -> bool:
    """Whether they are LoRAs, or DoRAs of which none is missing, whose magnitudes are one per output."""
    if all(_PAIR <= parts.keys() <= {*_PAIR, BIAS} for parts in given.values()):
        return True
    decomposed = all(_PAIR <= parts.keys() <= {*_PAIR, MAGNITUDE} for parts in given.values())
    return decomposed and all(len(given.get(path, {}).get(MAGNITUDE, ())) == count for path, count in rows.items())


def _alike(given: Mapping[str, Parts]) -> bool:
    """Whether they have tensors of the same names; a window may be left out where it begins at the first row."""
    return len({frozenset(parts.keys() - {WINDOW}) for parts in given.values()}) == 1


def _called(spelling: Spelling, parts: Parts) -> dict[str, str]:
    """Our tensor -> what it is called there, of one layer."""
    called = {"window": WINDOW} if "window" in spelling.adapter.frozen else {}
    either = spelling.adapter.either
    second = either is not None and bool(parts[either.flag])
    for part, tensor in parts.items():
        names = spelling.ours.get(with_axes(part, tensor.dim()), ())
        if names:
            called[names[-1 if second else 0] if len(names) > 1 else names[0]] = part
    return called


def _fused_pairs(native: Native, given: Mapping[str, Parts], rows: Mapping[str, int]) -> dict[str, Tensor]:
    """The pair of a fused layer; a layer that has none gets rows of zeros."""
    first, scale = next(iter(given.values())), _scale(next(iter(given.values())))
    ups = {path: _at(parts, scale) for path, parts in given.items()}
    shared = all(torch.equal(parts[DOWN], first[DOWN]) for parts in given.values())
    downs = [first[DOWN]] if shared else [parts[DOWN] for parts in given.values()]
    up = _stacked(ups, rows, shared)
    rank = sum(len(down) for down in downs)
    found = {DOWN: torch.cat(downs), UP: _swapped(up) if native.swapped else up}
    if any(BIAS in parts for parts in given.values()):
        empty = {path: first[DOWN].new_zeros(count) for path, count in rows.items()}
        bias = torch.cat([given[path].get(BIAS, empty[path]) if path in given else empty[path] for path in rows])
        found[BIAS] = _swapped(bias) if native.swapped else bias
    if MAGNITUDE in first:
        magnitude = torch.cat([given[path][MAGNITUDE] for path in rows])
        found[MAGNITUDE] = _swapped(magnitude) if native.swapped else magnitude
    return {**found, "alpha": torch.tensor(scale * rank, dtype=torch.float32)}


def _scale(parts: Parts) -> float:
    return float(parts["alpha"]) / len(parts[DOWN])


def _at(parts: Parts, scale: float) -> Tensor:
    """A layer's ``up`` as it is at another layer's scale."""
    own, up = _scale(parts), parts[UP]
    if math.isclose(own, scale, rel_tol=1e-6):
        return up
    if scale == 0:
        raise DoesNotFit("layers that are one natively have the scale 0 and another one; save with format='diffusers'")
    return (up.double() * (own / scale)).to(up.dtype)


def _stacked(ups: Mapping[str, Tensor], rows: Mapping[str, int], shared: bool) -> Tensor:
    """The ``up`` of all layers together, block-diagonal where they do not share ``down``."""
    some = next(iter(ups.values()))
    width = some.shape[1] if shared else sum(up.shape[1] for up in ups.values())
    out, begin, column = some.new_zeros(sum(rows.values()), width), 0, 0
    for path, count in rows.items():
        if path in ups:
            out[begin : begin + count, column : column + ups[path].shape[1]] = ups[path]
            column += 0 if shared else ups[path].shape[1]
        begin += count
    return out


def mixed_ranks(metadata: Mapping[str, str], tensors: Parts) -> dict[str, str]:
    """Returns what a header says in the place of a rank that is not that of all layers, once some were put together."""
    ranks = {str(len(tensor)) for key, tensor in tensors.items() if key.endswith((DOWN, "lora_A.weight"))}
    if not ranks or ranks == {metadata.get("ss_network_dim")} or "ss_network_dim" not in metadata:
        return {}
    return dict.fromkeys(("ss_network_dim", "ss_network_alpha"), "Dynamic")
