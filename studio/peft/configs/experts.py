"""The projections of experts by the names that they had before transformers stacked them into one parameter."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from studio.adapters.contract.pattern import matches
from studio.adapters.sites.parameter import experts_in
from studio.peft.configs.select import ends_with, names_in
from studio.peft.terms.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from studio.peft.terms.errors import Wrong

__all__ = ["name_experts"]

_STACKED: Final = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
"""The parameter -> the projections that are stacked in it, by each of their two sets of names."""


def name_experts(config: Any, model: nn.Module) -> None:
    """Puts the stacked parameters in ``target_parameters`` where ``target_modules`` has the experts' projections.

    Two projections in one parameter get twice the rank and alpha there, as in PEFT.

    Args:
        config: PEFT's; it is changed. model: the base.

    Raises:
        Wrong: a projection is named without the one that it is stacked with.
    """
    targets = getattr(config, "target_modules", None)
    inside = {path.rpartition(".")[0] for path in experts_in(model) if ends_with(path, "gate_up_proj")}
    if not (targets and inside and hasattr(config, "target_parameters")) or targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    named = _named(targets, inside, list(names_in(model)))
    for parameter, groups in _STACKED.items():
        for group in groups:
            here = [name for name in group if name in named]
            if not here:
                continue
            missing = [name for name in group if name not in here]
            if missing:
                raise Wrong(
                    f"Cannot convert PEFT target(s) {', '.join(here)} without also targeting {', '.join(missing)} "
                    f"because they are fused into {parameter}."
                )
            config.target_parameters = list(dict.fromkeys([*(config.target_parameters or []), parameter]))
            if len(group) > 1:
                config.rank_pattern.setdefault(rf".*\.{parameter}", config.r * len(group))
                config.alpha_pattern.setdefault(rf".*\.{parameter}", config.lora_alpha * len(group))
    if named and not isinstance(targets, str):
        config.target_modules = {name for name in targets if name.rpartition(".")[2] not in named}
    elif named:
        config.target_modules = _layers(targets, list(names_in(model)))


def _layers(expression: str, names: list[str]) -> set[str]:
    """The layers that an expression names: by their last words, where those name no others."""
    found = {name for name in names if matches(f"re:{expression}", name)}
    words = {name.rpartition(".")[2] for name in found}
    return words if {name for name in names if name.rpartition(".")[2] in words} == found else found


def _named(targets: Any, inside: set[str], layers: list[str]) -> set[str]:
    """The experts' projections that targets name and that are no layers of the model."""
    known = {name for groups in _STACKED.values() for group in groups for name in group}
    if isinstance(targets, str):
        return {name for name in known if any(matches(f"re:{targets}", f"{path}.{name}") for path in inside)}
    stray = {target for target in targets if not any(ends_with(layer, target) for layer in layers)}
    return known & {target.rpartition(".")[2] for target in stray}
