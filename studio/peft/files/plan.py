"""What is to be copied into an adapter, before any of it is: all of it fits, or nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from studio.errors import DoesNotFit, PartialLoad
from studio.peft.files.sorting import Parts
from studio.peft.model.stand_ins import give_parameter, swap
from studio.peft.model.state import State
from studio.peft.model.tokens import TOKEN_KEY, token_tensors
from studio.peft.model.tying import tie
from studio.peft.model.waiting import arrive, waiting

__all__ = ["Keys", "Plan", "plan_extras"]


class Keys(NamedTuple):
    """Which keys of a state dict found no place, and which tensors found no key."""

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass
class Plan:
    """What is to be copied where; nothing is until all of it is known to fit."""

    moves: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    fresh: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def add(self, path: str, live: Tensor, given: Tensor) -> None:
        """Adds one tensor.

        Args:
            path: its name. live: where it goes, ``(...)``. given: its values, ``(...)``.

        Raises:
            DoesNotFit: it has another shape than the live one.
        """
        if live.shape != given.shape:
            raise DoesNotFit(
                f"size mismatch for {path}: the file has {tuple(given.shape)}, the model {tuple(live.shape)}"
            )
        self.moves.append((live, given))

    def add_all(self, path: str, live: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
        """Adds the tensors of one thing, each ``(...)`` by name, and notes which are missing and which fit nothing."""
        for key in live.keys() & given.keys():
            self.add(f"{path}.{key}", live[key], given[key])
        self.missing += [f"{path}.{key}" for key in live if key not in given]
        self.unexpected += [f"{path}.{key}" for key in given if key not in live]

    def check(self) -> None:
        """Checks that nothing is missing or left over.

        Raises:
            PartialLoad: something is.
        """
        if self.unexpected:
            raise PartialLoad(f"{len(self.unexpected)} keys cannot be applied, {self.unexpected[0]!r} first")
        if self.missing:
            raise PartialLoad(
                f"the file lacks {len(self.missing)} tensors that the adapter has, {self.missing[0]!r} first"
            )

    @torch.no_grad()
    def carry_out(self, state: State, name: str) -> Keys:
        """Copies all of it, and returns what was missing and what fitted nothing."""
        expected = waiting(state, name)
        for live, given in self.moves:
            if id(live) in expected:
                arrive(*expected[id(live)], given)
            else:
                live.copy_(given)
        if expected:
            state.assembly.levels.touch()
            tie(state, name)
        for path, tensor in self.fresh.items():
            give_parameter(state, name, path, tensor)
        swap(state)
        return Keys(sorted(self.missing), sorted(self.unexpected))


def plan_extras(plan: Plan, state: State, name: str, parts: Parts) -> None:
    """Adds what belongs to whole modules, to the base's parameters and to rows of tokens.

    Args:
        plan: what it is added to. state: what is on the model. name: the adapter. parts: a file's tensors.

    Raises:
        DoesNotFit: a tensor has another shape than the live one.
    """
    extras, base = state.extras[name], dict(state.model.named_parameters(remove_duplicate=False))
    for path, module in extras.modules.items():
        plan.add_all(path, module.state_dict(), parts.modules.get(path, {}))
    for path, tensor in parts.parameters.items():
        live = extras.parameters.get(path)
        plan.add(path, base[path] if live is None else live, tensor)
        if live is None:
            plan.moves.pop()
            plan.fresh[path] = tensor
    plan.missing += [path for path in extras.parameters if path not in parts.parameters]
    rows = token_tensors(state, name)
    plan.add_all("", rows, {f"{path}{TOKEN_KEY}": tensor for path, tensor in parts.tokens.items()})
