"""export: the adapters on a model as one file of another program, proven by loading it again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import CombineReport, adapters, combine, detach, state
from studio.adapters.blend import read_blend
from studio.adapters.contract.change import change_of
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.attached import assemblies, whole_path
from studio.device import dtype_named
from studio.errors import BadFile, DoesNotFit, Refused
from studio.files.convert import remove_written
from studio.files.format import FORMATS, Format
from studio.files.load import load
from studio.files.save import save
from studio.given import given_path

__all__ = ["ExportReport", "export"]

EXACT: Final = 1e-5
"""How far a layer's change may be from what it was, as a part of it, where fp32 is stored."""
_AGAIN: Final = "read-again"
"""What the adapter of the file is called that is on the model meanwhile."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported.

    Attributes:
        file: the new file or folder. format: its format. method: of the adapter in it. sites: how many layers it has.
        error: ``‖ΔW' − ΔW‖ / ‖ΔW‖`` of all layers, of what was read again against what was written.
        worst: that of the layer where it is largest, and its path. allowed: how much it may be.
        lost: what bringing the adapters to one of a rank has left out of them; 0 where nothing was.
        parents: the adapters that it was made of, and their strengths.
    """

    file: Path
    format: str
    method: str
    sites: int
    error: float
    worst: tuple[float, str]
    allowed: float
    lost: float = 0.0
    parents: Mapping[str, Strength] = field(default_factory=dict)

    def __str__(self) -> str:
        lost = f"; the rank leaves out {self.lost:.2%} of the adapter" if self.lost else ""
        apart = "to the bit" if self.error == 0 else f"with an error of {self.error:.1e} ({self.worst[0]:.1e} at most)"
        return f"{self.file}: {self.method} in {self.sites} layers, as {self.format}; read again {apart}{lost}"


def export(
    model: Any,
    out: str | Path,
    *,
    format: str,
    blend: Mapping[str, StrengthLike] | str | None = None,
    rank: int | None = None,
    name: str = "exported",
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Writes a blend as one adapter file, loads it onto the same model, and compares what both change, layer by layer.

    An adapter by itself at strength 1 is written as it is, where the format has its method. Else the blend becomes one
    adapter first (:func:`studio.combine`, exactly): a LoRA where all are factor pairs, or where a rank is asked for.

    Args:
        model: the model or pipeline, with the adapters; it is as before afterwards.
        out: the new file or folder, which must not be there.
        format: of FORMATS: "gguf" (llama.cpp), "mlx", "peft", ...
        blend: adapters and strengths; None: the current blend.
        rank: of the new adapter, which is then a LoRA; None: what comes out.
        name: of the new adapter, where one is made; one that is written as it is keeps its own.
        dtype: what its tensors are stored in, or its name; None: as they are.
        metadata: facts that go with it.

    Raises:
        UnknownName: no such adapter or format. BadFile: something is there, or nothing can be written there.
        DoesNotFit: no adapter acts, the format cannot say what they are, or a blend is baked.
        Refused: what was read again is not what was written; nothing is left of it.
        BadConfig: an impossible rank, strength or dtype.

    Example:
        >>> import tempfile, torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",), init="orthogonal"), name="dog")
        >>> _ = studio.state(net, "dog")["0.up"].data.add_(1.0)
        >>> report = export(net, Path(tempfile.mkdtemp()) / "dog", format="peft", blend={"dog": 0.5})
        >>> report.method, report.sites, report.error < 1e-6
        ('lora', 1, True)
    """
    place, chosen = given_path(out), FORMATS[format]
    if place.exists():
        raise BadFile(f"{place} is there already; choose another name")
    strengths = {name: one for name, one in read_blend(model, _acting(model, blend)).items() if one != Strength(0.0)}
    if not strengths:
        raise DoesNotFit("no adapter acts, so there is nothing to export: name one, with a strength other than 0")
    with _one(model, strengths, chosen, rank, name) as (own, made):
        written = save(model, place, name=own, format=chosen.name, dtype=dtype, metadata=metadata)
        try:
            error, worst = _read_again(model, own, written)
            allowed = _allowed(dtype, adapters(model)[own].metadata)
            if not worst[0] <= allowed:
                raise Refused(
                    f"as {chosen.name}, what is read again is {worst[0]:.1e} off at {worst[1]}, and {allowed:.0e} is "
                    "what rounding may do: nothing is kept; store it in fp32 (dtype='fp32', --store fp32)"
                )
        except BaseException:
            remove_written(written)
            raise
        found = adapters(model)[own]
        return ExportReport(
            file=written, format=chosen.name, method=found.method, sites=len(found.sites), error=error, worst=worst,
            allowed=allowed, lost=0.0 if made is None else made.error, parents=strengths,
        )  # fmt: skip


def _acting(model: Any, blend: Mapping[str, StrengthLike] | str | None) -> Mapping[str, StrengthLike] | str:
    return {name: one.strength for name, one in adapters(model).items()} if blend is None else blend


@contextlib.contextmanager
def _one(
    model: Any, strengths: Mapping[str, Strength], format: Format, rank: int | None, called: str
) -> Iterator[tuple[str, CombineReport | None]]:
    """The blend as one adapter: its name, and what came of making it; one that was made goes again."""
    name, strength = next(iter(strengths.items()))
    config = adapters(model)[name].config
    alone = len(strengths) == 1 and strength == Strength(1.0) and rank is None
    if alone and (format.holds(config) or not _pairs(model, strengths)):
        yield name, None
        return
    if format.methods and rank is None and not _pairs(model, strengths):
        others = [one for one in strengths if not _pairs(model, [one])]
        raise DoesNotFit(
            f"{others[0]!r} is of {adapters(model)[others[0]].method}, which is no pair of factors, and with the rest "
            f"and its strength it becomes none by itself: give a rank (rank=N, --rank N), and what it leaves out is "
            "said"
        )
    made = combine(model, strengths, rank=rank, name=called)
    try:
        yield called, made
    finally:
        detach(model, called)


def _pairs(model: Any, names: Any) -> bool:
    """Whether all of these adapters are pairs of factors."""
    return all(member.adapter.fused for name in names for member in adapters(model)[name].config.members)


@torch.no_grad()
def _read_again(model: Any, name: str, file: Path) -> tuple[float, tuple[float, str]]:
    """How far what a file changes is from what an adapter changes: of all layers, and of the one where it is most."""
    load(model, file, name=_AGAIN, strength=0.0)
    try:
        wanted, found = (_changes(model, one) for one in (name, _AGAIN))
        if wanted.keys() != found.keys():
            alone = sorted(wanted.keys() ^ found.keys())
            raise Refused(f"{len(alone)} layers are not what was written, {alone[0]} is one: nothing is kept")
        lacking = whole = 0.0
        worst = (0.0, next(iter(wanted)))
        for path in wanted:
            off, size = _apart(wanted[path](), found[path]())
            lacking, whole = lacking + off, whole + size
            share = (off / size) ** 0.5 if size else float(off > 0)
            worst = worst if worst[0] >= share else (share, path)
        return (lacking / whole) ** 0.5 if whole else 0.0, worst
    finally:
        detach(model, _AGAIN)


def _changes(model: Any, name: str) -> dict[str, Callable[[], Sequence[Tensor | None]]]:
    """Path -> what gives the change there; key -> the tensor itself, for what changes no weight."""
    if not all(member.adapter.bakes for member in adapters(model)[name].config.members):
        return {key: partial(_alone, tensor) for key, tensor in state(model, name).items()}
    return {
        whole_path(component, path): partial(change_of, mount.site, adapter)
        for component, assembly in assemblies(model).items()
        for path, mount in assembly.mounts.items()
        if (adapter := mount.adapters.get(name)) is not None
    }


def _alone(tensor: Tensor) -> Sequence[Tensor | None]:
    return (tensor,)


def _apart(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> tuple[float, float]:
    """``‖Δ' − Δ‖²`` and ``‖Δ‖²`` of a layer, of weight and bias together."""
    off = size = 0.0
    for wanted, found in zip(one, other, strict=True):
        first, second = (_exact(tensor) for tensor in (wanted, found))
        off += float((second - first).square().sum())
        size += float(first.square().sum())
    return off, size


def _exact(tensor: Tensor | None) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if tensor is None else tensor.detach().cpu().double()


def _allowed(dtype: torch.dtype | str | None, facts: Mapping[str, str]) -> float:
    """What rounding may do to a product of two factors."""
    word = {"F16": torch.float16, "BF16": torch.bfloat16}.get(facts.get("dtype", ""), torch.float32)
    stored = word if dtype is None else dtype_named(dtype) if isinstance(dtype, str) else dtype
    return max(EXACT, 2 * torch.finfo(stored).eps)
