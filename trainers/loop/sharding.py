"""A base that is too big for one process: each holds a part of every block, and they lend it to each other in turn.

torch's ``fully_shard`` (FSDP2) gathers a block's weights when it runs, and drops what is not its own part right after.
The adapter stays whole in every process, so it is saved, shown and checked as always, and its gradients travel as
always (:mod:`studio.trainers.loop.group`). The base does not come back: its weights stay apart until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from studio.errors import BadConfig, DoesNotFit
from studio.trainers.loop.group import Group

__all__ = ["check_shards", "shard"]


def check_shards(sharding: str, group: Group, samples: int) -> None:
    """Checks, before the first step, that a base can be divided among the processes.

    Args:
        sharding: the plan's. group: the processes. samples: of one step.

    Raises:
        BadConfig: there is one process, or the processes would run the model different numbers of times.
    """
    if sharding == "none":
        return
    if group.alone:
        raise BadConfig("sharding='full' divides the base among processes, and there is one: start several (launch)")
    if samples % group.size:
        raise BadConfig(
            f"sharding='full' runs the base in all {group.size} processes at once, and a step's {samples} samples are "
            "no multiple of that: choose batch_size and accumulation so"
        )


def shard(modules: Sequence[nn.Module], adapter: Sequence[Tensor], group: Group) -> None:
    """Divides the frozen weights of modules among the processes, block by block.

    Args:
        modules: the base's, with the adapter attached. adapter: tensors that stay whole. group: the processes.

    Raises:
        DoesNotFit: a module's weights cannot be divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(modules[0].parameters()).device
    mesh = init_device_mesh(device.type, (group.size,))
    whole: Any = {tensor for tensor in adapter if isinstance(tensor, nn.Parameter)}
    for module in modules:
        try:
            for block in (*_blocks(module), module):
                fully_shard(block, mesh=mesh, ignored_params=whole)
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0][:160]
            raise DoesNotFit(f"the weights of {type(module).__name__} cannot be divided among processes ({reason})"
                             ) from None  # fmt: skip


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of its outermost lists: the blocks that run one after the other."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for item in child:
                if any(True for _ in item.parameters()) and type(item).forward is not nn.Module.forward:
                    yield item
        else:
            yield from _blocks(child)
