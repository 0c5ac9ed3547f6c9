"""Layers that are one matrix natively and several in diffusers: a LoRA of the one on the others, and back.

``ΔW = s · up @ down`` of a fused layer is that of its parts, stacked by rows. Fused to split is exact: every part has
its rows of ``up`` and the shared ``down``, or its block of both where ``up`` is block-diagonal. Split to fused is exact
too: parts that share ``down`` keep it, others make ``up`` block-diagonal, by which their ranks add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families.native import Native
from studio.files.names import Names
from studio.files.scale import Grade

__all__ = ["DOWN", "UP", "gathered", "mixed_ranks", "split_rows"]

Parts = Mapping[str, Tensor]
DOWN: Final = "lora_down.weight"
UP: Final = "lora_up.weight"
BIAS: Final = "diff_b"
_OURS: Final = {"down", "up", "bias"}


# -- fused to split ----------------------------------------------------------------------------------------------------


def split_rows(
    native: Native, grade: Grade, tensors: Parts, rows: Sequence[int]
) -> Iterator[tuple[str, Grade, dict[str, Tensor]]]:
    """Gives every layer its part of a LoRA of a fused one; those that it does not change get none.

    Args:
        native: the fused layer. grade: rank and scale of its LoRA. rows: outputs of each of its layers here.
        tensors: ``down`` (r, cols), ``up`` (rows, r), and perhaps ``bias`` (rows,).

    Raises:
        DoesNotFit: the tensors are of another method, or have another number of rows.
    """
    if not {"down", "up"} <= tensors.keys() <= _OURS:
        raise DoesNotFit(f"it is {_said(native)}, and only a LoRA is brought from one to the other here")
    if len(tensors["up"]) != sum(rows):
        raise DoesNotFit(
            f"it is {_said(native)}, which have {sum(rows)} outputs together, and its tensors have {len(tensors['up'])}"
        )
    turned = {name: _swapped(one) if native.swapped and name != "down" else one for name, one in tensors.items()}
    ups = turned["up"].split(list(rows))
    biases = turned["bias"].split(list(rows)) if "bias" in turned else (None,) * len(rows)
    for path, up, bias, (begin, end) in zip(native.paths, ups, biases, _ranks(ups), strict=True):
        if begin == end and (bias is None or not bias.any()):
            continue
        begin, end = (begin, end) if begin < end else (0, up.shape[1])
        own = {"down": turned["down"][begin:end].clone(), "up": up[:, begin:end].clone()}
        yield path, Grade(end - begin, grade.scale), own if bias is None else {**own, "bias": bias.clone()}


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
        DoesNotFit: layers that are one there have another method than LoRA.
    """
    found: dict[str, Parts] = {}
    for path, parts in layers.items():
        whole = names.native[path] if names.translates(path, format) else Native("", (path,))
        name = spell(names, path)
        if name in found:
            continue  # with the first of its layers
        alone = len(whole.paths) == 1 and not whole.swapped
        found[name] = parts if alone else _fused(names, whole, layers)
    return found


def _fused(names: Names, native: Native, layers: Mapping[str, Parts]) -> dict[str, Tensor]:
    """The parts of the LoRA of a fused layer; a layer that has none gets rows of zeros."""
    given = {path: layers[path] for path in native.paths if path in layers}
    if any(not {DOWN, UP, "alpha"} <= parts.keys() <= {DOWN, UP, "alpha", BIAS} for parts in given.values()):
        raise DoesNotFit(
            f"natively {native.name} is {_said(native)}, and only a LoRA is brought from one to the other here; save "
            "with format='diffusers'"
        )
    rows = {path: names.site(path).rows for path in native.paths}
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
