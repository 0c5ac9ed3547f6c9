"""resize: the best adapter of a lower rank, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.adapters import LoRA
from studio.adapters.combining.pairs import Pair, of_rank
from studio.config import finite
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.files.hashes import file_hash
from studio.files.loose import Loose, read_loose, write_loose
from studio.files.names import Names
from studio.files.source import tensor_file
from studio.given import given_path

__all__ = ["ResizeReport", "resize"]


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """What a resizing did.

    Attributes:
        file: the new file. ranks: rank -> how many layers have it. before: the same of the old file.
        error: ``‖D − D_k‖ / ‖D‖`` of all layers together. worst: that of the layer where it is largest, and its path.
    """

    file: Path
    ranks: Mapping[int, int]
    before: Mapping[int, int]
    error: float
    worst: tuple[float, str]

    def __str__(self) -> str:
        return (
            f"{self.file}: ranks {_shown(self.before)} became {_shown(self.ranks)}; they leave out {self.error:.2%} "
            f"({self.worst[0]:.2%} at {self.worst[1]})"
        )


def resize(
    file: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    sv_ratio: float | None = None,
    sv_fro: float | None = None,
    sv_cumulative: float | None = None,
    family: str | None = None,
    base: str | Any | None = None,
    format: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> ResizeReport:
    """Brings a low-rank adapter to lower ranks, each layer by the best approximation there is (Eckart & Young).

    With singular values ``σ_1 ≥ σ_2 ≥ …`` of a layer's change, its rank is the smallest ``k`` that keeps what is asked
    for; ``rank`` is the most in any case.

    Args:
        file: the adapter file. out: the new one, which must not be there.
        rank: the largest rank.
        sv_ratio: keep the values above ``σ_1 / sv_ratio``; > 1.
        sv_fro: keep ``√(Σ_{i≤k} σ_i² / Σ σ_i²) ≥ sv_fro``, in (0, 1].
        sv_cumulative: keep ``Σ_{i≤k} σ_i / Σ σ_i ≥ sv_cumulative``, in (0, 1].
        family: see :func:`~studio.files.convert.convert`. base: see there.
        format: of the new file; None: that of the old one. dtype: what its tensors are stored in; None: as they were.

    Raises:
        BadConfig: nothing or more than one way was asked for, or an impossible number.
        BadFile: it cannot be read, or the new one is there. DoesNotFit: its method is no factor pair; see also convert.
        PartialLoad: a part of it fits no layer.
    """
    _check(rank, {"sv_ratio": sv_ratio, "sv_fro": sv_fro, "sv_cumulative": sv_cumulative})
    place = given_path(out)
    if place.exists():
        raise BadFile(f"{place} is there already; choose another name")
    loose = read_loose(file, family=family, base=base)
    if not isinstance(loose.config, LoRA):
        raise DoesNotFit(f"{loose.file} is of {loose.config.label}; what has a rank that can be lowered is a LoRA")
    layers = _lowered(loose, loose.config, lambda pair: _kept(pair, rank, sv_ratio, sv_fro, sv_cumulative))
    ranks, scales = ({one.path: getattr(one, of) for one in layers.values()} for of in ("rank", "scale"))
    biased = any("bias" in one.tensors for one in layers.values())
    config = LoRA(targets=loose.config.targets, use_bias=biased).regraded(ranks, scales)
    resized = loose.changed(config, {path: one.tensors for path, one in layers.items()})
    resized = resized.noted("resized", file_hash(tensor_file(loose.file)))
    written = write_loose(resized, place, format=format, dtype=_stored(loose.facts) if dtype is None else dtype)
    lacking, whole = (sum(getattr(one, of) for one in layers.values()) for of in ("lacking", "whole"))
    return ResizeReport(
        file=written, ranks=Counter(ranks.values()), before=Counter(one.before for one in layers.values()),
        error=math.sqrt(lacking / whole) if whole else 0.0,
        worst=max((math.sqrt(one.lacking / one.whole) if one.whole else 0.0, path) for path, one in layers.items()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """A layer of a lower rank: what it lacks, and the whole, squared."""

    path: str
    tensors: dict[str, Tensor]
    scale: float
    before: int
    lacking: float
    whole: float

    @property
    def rank(self) -> int:
        return len(self.tensors["down"])


def _lowered(loose: Loose, config: LoRA, keep: Callable[[Pair], int]) -> dict[str, _Layer]:
    names, found = Names(loose.model), {}
    for path, tensors in loose.layers.items():
        site = names.site(path, config.adapter.kinds)
        down, up, scale, bias = config.adapter(site, config, tensors, trainable=False).factors()
        pair = down.flatten(1), up
        (low_down, low_up), lacking, whole = of_rank(pair, keep(pair))
        low = {"down": low_down.reshape(-1, *site.inner_shape).float(), "up": low_up.float()}
        low |= {} if bias is None else {"bias": bias}
        found[path] = _Layer(site.path, low, scale, len(down), lacking * scale**2, whole * scale**2)
    return found


def _check(rank: int | None, ways: Mapping[str, float | None]) -> None:
    asked = {name: value for name, value in ways.items() if value is not None}
    if rank is None and not asked:
        raise BadConfig("resize to what? give rank, sv_ratio, sv_fro or sv_cumulative")
    if len(asked) > 1:
        raise BadConfig(f"{' and '.join(asked)} are different ways to find a rank; give one")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise BadConfig(f"rank={rank!r}: a rank is a whole number from 1 on")
    for name, value in asked.items():
        sound = finite(value) and (value > 1 if name == "sv_ratio" else 0 < value <= 1)
        if not sound:
            raise BadConfig(f"{name}={value!r} must be {'above 1' if name == 'sv_ratio' else 'in (0, 1]'}")


def _kept(
    pair: Pair,
    rank: int | None,
    sv_ratio: float | None,
    sv_fro: float | None,
    sv_cumulative: float | None,
) -> int:
    """The rank that keeps what is asked for."""
    most = min(len(pair[0]), rank or len(pair[0]))
    if sv_ratio is None and sv_fro is None and sv_cumulative is None:
        return most
    (down, _), _, _ = of_rank(pair, len(pair[0]))
    values = down.square().sum(1)  # a row of the best pair is √σ long
    if not float(values.sum()):
        return 1
    if sv_ratio is not None:
        count = int((values > values[0] / sv_ratio).sum())
    else:
        share = values.square().cumsum(0) if sv_fro is not None else values.cumsum(0)
        wanted = sv_fro**2 if sv_fro is not None else sv_cumulative
        count = int((share / share[-1] < (wanted or 1.0) - 1e-12).sum()) + 1
    return max(1, min(count, most))


def _stored(facts: Mapping[str, str]) -> str | None:
    word = facts.get("dtype")
    return {"F16": "fp16", "BF16": "bf16"}.get(word or "")


def _shown(ranks: Mapping[int, int]) -> str:
    return ", ".join(f"{rank} ({count})" for rank, count in sorted(ranks.items()))
