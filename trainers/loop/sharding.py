"""A base that is too big for one process: each holds a part of every block, and they lend it to each other in turn.

torch's ``fully_shard`` (FSDP2) gathers a block's weights when it runs, and drops what is not its own part right after;
DeepSpeed's ZeRO-3 does the same layer by layer (:mod:`studio.trainers.loop.zero_base`). The adapter stays whole in
every process, so it is saved, shown and checked as always. The base does not come back: its weights stay apart until
the process ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from studio.errors import BadConfig, DoesNotFit
from studio.trainers.loop.group import Group
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.zero import ZERO, need_deepspeed

__all__ = ["DIVIDES_BASE", "check_shards", "check_started", "shard"]

Running: TypeAlias = Callable[[], AbstractContextManager[None]]

DIVIDES_BASE: Final = frozenset({"full", "zero3"})
"""Ways in which the base itself is divided, so that all processes have to run it at once."""


def check_started(sharding: str, group: Group) -> None:
    """Checks, before a base is opened, that what divides the work is there.

    Args:
        sharding: the plan's. group: the processes.

    Raises:
        BadConfig: there is one process.
        MissingPackage: DeepSpeed is not installed.
    """
    if sharding != "none" and group.alone:
        what = "the base" if sharding in DIVIDES_BASE else "gradients and moments"
        raise BadConfig(
            f"sharding={sharding!r} divides {what} among processes, and there is one: start several (launch)"
        )
    need_deepspeed(sharding)


def check_shards(sharding: str, group: Group, samples: int) -> None:
    """Checks, before the first step, that the processes have the same number of passes.

    Args:
        sharding: the plan's. group: the processes. samples: of one step.

    Raises:
        BadConfig: they would run the model different numbers of times.
    """
    if sharding != "none" and samples % group.size:
        raise BadConfig(
            f"sharding={sharding!r} lets all {group.size} processes work at once, and a step's {samples} samples are "
            "no multiple of that: choose batch_size and accumulation so"
        )


def shard(modules: Sequence[nn.Module], adapter: Sequence[Tensor], group: Group, plan: Plan) -> Running:
    """Divides the frozen weights of modules among the processes, where the plan says so.

    Args:
        modules: the base's, with the adapter attached. adapter: tensors that stay whole. group: the processes. plan:
            the loop's settings.

    Returns:
        A context in which the modules run.

    Raises:
        DoesNotFit: a module's weights cannot be divided.
    """
    if plan.sharding in ZERO and plan.sharding in DIVIDES_BASE:
        from studio.trainers.loop.zero_base import LentBase

        unit = max(sum(p.numel() for p in block.parameters()) for module in modules for block in _units(module))
        base = LentBase(modules, adapter, unit, plan.offload)
        return partial(_together, group, base.running)
    if plan.sharding in DIVIDES_BASE:
        _fully_shard(modules, adapter, group)
        return group.talking
    return contextlib.nullcontext


@contextlib.contextmanager
def _together(group: Group, running: Running) -> Iterator[None]:
    with group.talking(), running():
        yield


def _fully_shard(modules: Sequence[nn.Module], adapter: Sequence[Tensor], group: Group) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(modules[0].parameters()).device
    mesh = init_device_mesh(device.type, (group.size,))
    whole: Any = {tensor for tensor in adapter if isinstance(tensor, nn.Parameter)}
    for module in modules:
        try:
            for block in _units(module):
                fully_shard(block, mesh=mesh, ignored_params=whole)
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0][:160]
            raise DoesNotFit(f"the weights of {type(module).__name__} cannot be divided among processes ({reason})"
                             ) from None  # fmt: skip


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """A module's blocks, and itself."""
    yield from _blocks(module)
    yield module


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of its outermost lists: the blocks that run one after the other."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for item in child:
                if any(True for _ in item.parameters()) and type(item).forward is not nn.Module.forward:
                    yield item
        else:
            yield from _blocks(child)
