"""An adapter of another method as a LoRA: for each layer the pair of factors that comes nearest to its change."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter
from studio.adapters.combining.numbers import truncated
from studio.peft.configs import methods as configs
from studio.peft.model.merging import fold_again, take_out
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["NotConvertible", "can_become_lora", "converted", "supports_lora_conversion"]

_MATRICES: Final = ("linear", "conv1d-gpt2")


class NotConvertible(Wrong, TypeError):
    """An adapter that no LoRA can stand for; a ``TypeError`` too, which is what PEFT raises."""


def can_become_lora(adapter: Adapter) -> bool:
    """Says whether a LoRA can stand for an adapter at its layer."""
    return adapter.peft.additive and adapter.site.kind in _MATRICES


def supports_lora_conversion(state: State, adapter_name: str = "default") -> bool:
    """Says whether an adapter can be converted to a LoRA; of an unknown name all adapters are meant."""
    names = [adapter_name] if adapter_name in state.configs else list(state.configs)
    layers = [adapter for name in names for adapter in state.own_layers(name).values()]
    return bool(layers) and all(map(can_become_lora, layers))


@torch.no_grad()
def converted(state: State, name: str, rank: float, progressbar: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """Returns a LoRA's config, and its tensors by their keys in a file without its prefix.

    Args:
        state: what is on the model. name: the adapter. progressbar: say on stderr how far it is.
        rank: of each layer; a float is the share of the change's energy (squared singular values) that is kept.

    Raises:
        NotConvertible: a layer or a method that no LoRA can stand for. Wrong: another rank than the layers can have, or
            an adapter with biases or token rows of its own.
    """
    _check_rank(rank)
    _check_whole(state, name)
    layers = state.own_layers(name)
    take_out(state)  # the weights are the base's own while the change is taken
    try:
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        for path, adapter in _counted(layers, progressbar):
            down, up = _factors(state, name, adapter, rank)
            ranks[path] = len(down)
            tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    finally:
        fold_again(state)
    own: Any = state.configs[name]
    usual, others = (rank, {}) if isinstance(rank, int) else (1, ranks)
    config = configs.LoraConfig(
        r=usual, lora_alpha=usual, target_modules=set(layers), rank_pattern=dict(others), alpha_pattern=dict(others),
        task_type=own.task_type, base_model_name_or_path=own.base_model_name_or_path, revision=own.revision,
        modules_to_save=getattr(own, "modules_to_save", None),
    )  # fmt: skip
    for path, module in state.extras[name].modules.items():
        tensors |= {f"{path}.{key}": one.detach() for key, one in module.state_dict().items()}
    return config, tensors


def _check_rank(rank: float) -> None:
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise Wrong(
                f"If rank is a float, it is interpreted as a threshold. It must be between 0 and 1 but got {rank}."
            )
    elif isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise Wrong(f"Passing a rank of {rank!r} doesn't make sense, please pass a whole number of at least 1.")


def _check_whole(state: State, name: str) -> None:
    """Checks that all of an adapter can be told by pairs of factors and copies of modules."""
    config: Any = state.configs[name]
    layers = state.own_layers(name)
    if config.is_prompt_learning or not layers:
        raise NotConvertible(f"Could not detect any layer that supports LoRA conversion: {name!r} is {config.word}")
    unfit = {type(one.site.module).__name__ for one in layers.values() if not can_become_lora(one)}
    if unfit:
        raise NotConvertible(
            f"Some module types on this model do not support LoRA conversion: {', '.join(sorted(unfit))} with "
            f"{config.word}; it is for methods whose change is a sum beside the weight, on linear layers"
        )
    bias = getattr(config, "bias", "none")
    if bias != "none" or getattr(config, "lora_bias", False):
        raise Wrong(f"The adapter's config sets bias={bias if bias != 'none' else True}, this is not supported.")
    if state.token_layers(name):
        raise Wrong(f"{name!r} has rows of single tokens (trainable_token_indices), which a conversion would lose")
    if isinstance(config, configs.LoraConfig):
        warnings.warn(
            "Converting a PEFT adapter to LoRA that is already a LoRA adapter. There is typically no need for that.",
            PeftWarning,
            stacklevel=4,
        )


def _counted(layers: Mapping[str, Adapter], said: bool) -> Iterator[tuple[str, Adapter]]:
    for number, found in enumerate(layers.items(), 1):
        yield found
        if said:
            print(f"\rConverting to LoRA: {number}/{len(layers)}", end="", file=sys.stderr, flush=True)
    if said:
        print(file=sys.stderr)


def _factors(state: State, name: str, adapter: Adapter, rank: float) -> tuple[Tensor, Tensor]:
    """The pair that comes nearest to an adapter's change at a layer, in the dtype of the adapter."""
    site = adapter.site
    change = adapter.delta(site.weight.float(), None if site.bias is None else site.bias.float())
    if change.weight is None or change.bias is not None:
        raise NotConvertible(f"the change at {site.path} is not one of the weight alone")
    matrix = site.matrix(change.weight).float() * state.scale_of(name, site.path)
    most = min(matrix.shape)
    if rank > most:
        raise Wrong(
            f"The chosen rank {rank} is larger than the weight shape ({most}), please choose a lower rank: {site.path}"
        )
    down, up = truncated(matrix, rank if isinstance(rank, int) else _rank_for(matrix, rank))
    dtype = next(adapter.parameters()).dtype
    return down.to(dtype), up.to(dtype)


def _rank_for(matrix: Tensor, share: float) -> int:
    """The smallest rank that keeps this share of the squared singular values."""
    kept = torch.linalg.svdvals(matrix).square().cumsum(0)
    return min(int(torch.searchsorted(kept, share * kept[-1])) + 1, len(kept))
