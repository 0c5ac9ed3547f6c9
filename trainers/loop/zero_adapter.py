"""The adapter under ZeRO-2: each process holds a part of its gradients and moments, and does that part of the step.

The tensors themselves stay whole in every process, in one flat piece per group of the optimizer. As soon as a gradient
is there it is added up over the processes, and each keeps what belongs to its part; after the step the parts are
gathered. What a checkpoint holds is the whole optimizer's state, so the run goes on with any number of processes, or
without DeepSpeed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.trainers.loop.group import Group
from studio.trainers.loop.zero import engine

__all__ = ["DividedOptimizer"]


class DividedOptimizer:
    """An optimizer whose gradients and moments are divided among processes.

    Args:
        whole: AdamW over the tensors, with the moments it has; it is not to be used any more.
        group: the processes.
        settings: DeepSpeed's, for stage 2.

    Attributes:
        param_groups: the groups of ``whole``, whose ``lr`` the next step follows.
    """

    def __init__(self, whole: Optimizer, group: Group, settings: dict[str, Any]) -> None:
        self.group = group
        self.param_groups = list(whole.param_groups)  # DeepSpeed takes empty ones out of its list
        content = whole.state_dict()
        self._form = content["param_groups"]
        self._divided = [list(entry["params"]) for entry in self.param_groups if entry["params"]]
        self._tensors = [tensor for tensors in self._divided for tensor in tensors]
        self._places = {id(tensor): place for place, tensor in enumerate(self._tensors)}
        self._seen: set[int] = set()  # tensors that have had a gradient here since the last step
        self._idle: set[int] = set()  # those that had none anywhere in the last one
        whole.state.clear()
        self.engine = engine(_Holder(self._tensors), settings, self._tensors[0].device, whole)
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(lambda one: self._seen.add(id(one))) for tensor in self._tensors
        ]
        self._take(content["state"])

    # -- a step --------------------------------------------------------------------------------------------------------

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients to those of the step.

        Args:
            loss: this process's part of it, a scalar ``()``; the parts are added up over the processes.
            last: whether it is the step's last one.
        """
        self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss * self.group.size, scale_wrt_gas=False)  # DeepSpeed takes the mean
        if not last:
            self.engine.step()  # which only counts

    def step(self) -> float:
        """Does the step, unless its gradient is not finite; returns the gradient's norm."""
        zero = self.engine.optimizer
        for mine, parts in zip(
            zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
        ):
            mine.data.copy_(parts[self.group.rank])  # a method may have moved the tensors since
        self._look_round()
        idle = [(tensor, tensor.detach().clone()) for tensor in self._tensors if not self.reached(tensor)]
        self.engine.step()
        for tensor, before in idle:  # it has decayed them
            tensor.data.copy_(before)
        return math.inf if zero.overflow else float(self.engine.get_global_grad_norm())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients, as the step has done already."""
        self.engine.optimizer.zero_grad(set_to_none=set_to_none)

    def destroy(self) -> None:
        """Takes the hooks off the tensors, DeepSpeed's and its own."""
        self.engine.optimizer.destroy()
        for hook in self._hooks:
            hook.remove()

    def reached(self, tensor: Tensor) -> bool:
        """Whether the last step had a gradient of a tensor of any shape, in any process."""
        return id(tensor) not in self._idle

    def _look_round(self) -> None:
        """Finds out which tensors have no gradient anywhere."""
        seen = torch.tensor([float(id(tensor) in self._seen) for tensor in self._tensors])
        dist.all_reduce(seen)
        self._seen.clear()
        self._idle = {id(tensor) for tensor, count in zip(self._tensors, seen.tolist(), strict=True) if not count}

    # -- its state, whole ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that the whole optimizer would have; all processes have to ask for it at once."""
        state: dict[int, dict[str, Any]] = {}
        for index, tensors in enumerate(self._divided):
            for name, value in self._own(index).items():
                if value.dim() == 0:
                    found = [value.clone() for _ in tensors]
                else:
                    found = self._pieces(index, self._gathered(value))
                for tensor, piece in zip(tensors, found, strict=True):
                    state.setdefault(self._places[id(tensor)], {})[name] = piece
        groups = [
            {**own, **{key: value for key, value in entry.items() if key != "params"}}
            for own, entry in zip(self._form, self.param_groups, strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _take(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Takes this process's part of the moments of a whole optimizer."""
        zero = self.engine.optimizer
        for index, tensors in enumerate(self._divided):
            entries = [state.get(self._places[id(tensor)], {}) for tensor in tensors]
            known = next((entry for entry in entries if entry), {})
            mine = zero.single_partition_of_fp32_groups[index]
            taken: dict[str, Any] = {}
            for name, value in known.items():
                if not isinstance(value, Tensor) or value.dim() == 0:
                    taken[name] = value.to(mine.device) if isinstance(value, Tensor) else value
                    continue
                flat = torch.zeros(mine.numel() * self.group.size, dtype=mine.dtype)
                for piece, entry in zip(self._pieces(index, flat), entries, strict=True):
                    if name in entry:
                        piece.copy_(entry[name])
                taken[name] = flat[self.group.rank * mine.numel() :][: mine.numel()].to(mine.device)
            if taken:
                zero.optimizer.state[mine] = taken

    def _own(self, index: int) -> dict[str, Tensor]:
        zero = self.engine.optimizer
        found = zero.optimizer.state.get(zero.single_partition_of_fp32_groups[index], {})
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _gathered(self, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(self.group.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def _pieces(self, index: int, flat: Tensor) -> list[Tensor]:
        """Each tensor's numbers in a flat piece of all of a group, as they lie there."""
        offsets = self.engine.optimizer.round_robin_bit16_offsets[index]
        return [
            flat[begin : begin + tensor.numel()].view(tensor.shape)
            for begin, tensor in zip(offsets, self._divided[index], strict=True)
        ]


class _Holder(nn.Module):
    """Shows DeepSpeed the tensors, and nothing of the model."""

    def __init__(self, tensors: list[nn.Parameter]) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(tensors)
