"""grow: a higher rank for an adapter that is on a model already, with the same change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.adapters.attach import AttachReport
from studio.adapters.contract.adapter import Adapter, AdapterConfig, generator_for
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.contract.starts import padded
from studio.adapters.hosting.assembly import Assembly
from studio.adapters.hosting.attached import assemblies, check_known, check_unbaked, whole_path
from studio.adapters.hosting.turns import in_turn
from studio.config import own_number
from studio.device import on_cpu
from studio.errors import BadConfig, UnsupportedLayer
from studio.families import check_own

__all__ = ["grow", "rehearse_growth"]

Grown = tuple[Assembly, AdapterConfig, dict[str, Adapter]]


@in_turn
def grow(model: Any, name: str, rank: int, *, seed: int = 0) -> AttachReport:
    """Raises the rank of an adapter; what it computes stays the same.

    The new ranks stand behind the old ones and change nothing yet: one of their factors is drawn as at the start of a
    new adapter, the other is zero. The scale stays, so alpha grows with the rank. Layers that have that rank or more
    stay as they are. What was trainable is trainable afterwards, in new Parameters: make the optimizer anew, or train
    with ``grow={steps: rank}``, where the loop does it and keeps the moments.

    Args:
        model: the model or pipeline. name: the adapter. rank: its new rank.
        seed: what the new numbers are drawn from; every layer draws from (seed, rank, its path) alone.

    Returns:
        The layers that have grown, and how many numbers of the adapter are trained now.

    Raises:
        UnknownName: no adapter has that name. UnsupportedLayer: a method that cannot grow, or several of them.
        BadConfig: a rank that no layer is below, or that is larger than a layer.
        DoesNotFit: a blend is baked, or FSDP has been put around the adapter.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> studio.grow(net, "default", 4)
        AttachReport(parameters=64)
        >>> studio.adapters(net)["default"].config.rank
        4
    """
    check_unbaked(model, "grow")
    sites: list[str] = []
    count = 0
    for assembly, config, fresh in _built(model, name, rank, seed):
        for path, adapter in assembly.adapters(name):
            if path in fresh:
                _take(adapter, fresh[path])
                sites.append(whole_path(assembly.component, path))
            adapter.__dict__["config"] = config
            count += sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)
        assembly.records[name].config = config
        assembly.levels.touch()
    return AttachReport(tuple(sites), count)


def rehearse_growth(model: Any, name: str, rank: int) -> None:
    """Does what :func:`grow` does and keeps nothing of it, so that it is known beforehand whether it can be done.

    Raises:
        StudioError: as :func:`grow` does.
    """
    _built(model, name, rank, 0)


@torch.no_grad()
def _built(model: Any, name: str, rank: int, seed: int) -> list[Grown]:
    """Makes everything that a growth needs, before anything of the model is touched."""
    check_known(model, name)
    rank = own_number(rank)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise BadConfig(f"rank={rank!r}: a rank is a whole number, at least 1")
    found: list[Grown] = []
    for assembly in assemblies(model).values():
        if name not in assembly.records:
            continue
        own = assembly.records[name].config
        if len(own.members) > 1:
            raise UnsupportedLayer(f"{name!r} is of several methods ({own.label}), which do not grow together")
        ranks, scales, fresh = {}, {}, {}
        for path, adapter in assembly.adapters(name):
            config = adapter.config
            check_own(adapter, "grow")
            if not isinstance(config, RankedConfig) or config.rank_at(path) < rank:
                whole = whole_path(assembly.component, path)
                with on_cpu():
                    config, tensors = adapter.grown(rank, generator_for(seed, "grow", rank, whole))
                    fresh[path] = _like(adapter, config, tensors)
            ranks[path], scales[path] = config.rank_at(path), config.scale_at(path)
        found.append((assembly, own.regraded(ranks, scales), fresh))  # type: ignore[attr-defined]
    if not any(fresh for _, _, fresh in found):
        raise BadConfig(f"no layer of {name!r} has a rank below {rank}; give a higher one")
    return found


def _like(adapter: Adapter, config: AdapterConfig, tensors: dict[str, Tensor]) -> Adapter:
    """An adapter of the same kind with other tensors, each trained where it was."""
    made = type(adapter)(adapter.site, config, tensors, trainable=adapter.trainable)
    for key, parameter in made.named_parameters():
        old = adapter.tensor(key)
        parameter.requires_grad_(old is None or old.requires_grad)
    return made


def _take(adapter: Adapter, fresh: Adapter) -> None:
    """Puts the tensors of ``fresh`` into ``adapter``, which stays the same module with its hooks."""
    for key in adapter.scratch:
        old, new = adapter._buffers.get(key), fresh._buffers.get(key)
        if old is not None and new is not None:
            fresh._buffers[key] = padded(old, new)
    adapter._parameters.update(fresh._parameters)
    adapter._buffers.update(fresh._buffers)
    if "scale" in fresh.__dict__:
        adapter.__dict__["scale"] = fresh.__dict__["scale"]
