"""Swapping one LoRA for another in place, so that a compiled model is not compiled anew."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, grow
from studio.adapters.contract.ranked import any_rank
from studio.adapters.contract.starts import padded
from studio.peft.configs.config import PeftConfig
from studio.peft.files.filling import read_into
from studio.peft.files.folder import load_peft_weights
from studio.peft.model.copies import plain_view
from studio.peft.model.state import KEY, State, state_of
from studio.peft.model.tuner import base_of
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = [
    "check_hotswap_configs_compatible",
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "prepare_model_for_compiled_hotswap",
]

_ALIKE = ("use_rslora", "lora_dropout", "alpha_pattern", "use_dora")


def check_hotswap_configs_compatible(config0: PeftConfig, config1: PeftConfig) -> None:
    """Checks that one adapter can take another's place.

    Raises:
        Wrong: other methods, or another value of a field that shapes the computation.
    """
    if config0.peft_type != config1.peft_type:
        raise Wrong(f"Incompatible PEFT types found: {config0.word} and {config1.word}")
    if config0.word != "LORA":
        raise Wrong(f"Hotswapping only supports LORA but {config0.word} was passed.")
    for name in _ALIKE:
        first, second = getattr(config0, name, None), getattr(config1, name, None)
        if first != second:
            raise Wrong(f"Configs are incompatible: for {name}, {first} != {second}")


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str | Path,
    adapter_name: str = "default",
    torch_device: str | None = None,
    **kwargs: Any,
) -> None:
    """Replaces the tensors of an adapter by those of a saved one.

    Args:
        model: a PEFT model. model_name_or_path: the folder of the new adapter. adapter_name: the one that is replaced.
        torch_device: accepted; tensors go to where the old ones are. kwargs: subfolder, revision, cache_dir, token.

    Raises:
        Wrong: an adapter that cannot take the other's place. Unknown: no adapter has that name.
    """
    subfolder = kwargs.pop("subfolder", None)
    config = kwargs.pop("config", None) or PeftConfig.strictly_from(model_name_or_path, subfolder, **kwargs)
    state = state_of(base_of(model))
    state.check(adapter_name)
    check_hotswap_configs_compatible(state.configs[adapter_name], config)
    tensors = load_peft_weights(model_name_or_path, subfolder=subfolder, **kwargs)
    hotswap_adapter_from_state_dict(model, tensors, adapter_name, config)


def hotswap_adapter_from_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str, config: Any, parameter_prefix: str = "lora_"
) -> None:
    """Replaces the tensors of an adapter; layers that the new one does not have are zero from then on.

    A smaller rank is padded with zeros, another scale is worked into the tensors: shapes and config stay. A larger rank
    widens the old adapter first, in new Parameters; a compiled model is compiled anew then.

    Args:
        model: a PEFT model, or a base with adapters. state_dict: PEFT's keys to tensors ``(...)``.
        adapter_name: the adapter that is replaced. config: the new one's config. parameter_prefix: "lora_".

    Raises:
        Wrong: a layer that the old adapter does not have, or other tensors than it has. Stray: a key that fits nothing.
    """
    base = base_of(model)
    state = state_of(base)
    with refusals():
        state.check(adapter_name)
        ours, layers = read_into(base, config, state_dict, adapter_name)
        live = state.own_layers(adapter_name)
        stray = sorted(set(layers) - set(live))
        if stray:
            raise Wrong(
                f"Hot swapping the adapter did not succeed: the new adapter is on {stray[0]} and {len(stray) - 1} more "
                "layers that the old one does not have"
            )
        ranks = [tensors["down"].shape[0] for tensors in layers.values() if "down" in tensors]
        if any(tensors["down"].shape[0] > live[path].tensors()["down"].shape[0] for path, tensors in layers.items()):
            _widen(state, adapter_name, max(ranks + [one.tensors()["down"].shape[0] for one in live.values()]))
        made = {path: _fitted(adapter, layers.get(path), ours) for path, adapter in live.items()}
    with torch.no_grad():
        for path, adapter in live.items():
            for name, tensor in adapter.tensors().items():
                tensor.copy_(made[path][name])


def _fitted(adapter: Adapter, new: Mapping[str, Tensor] | None, config: Any) -> dict[str, Tensor]:
    """The new tensors in the shapes and at the scale of the old ones."""
    own, path = adapter.tensors(), adapter.site.path
    if new is None:
        return {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    if set(new) != set(own):
        raise Wrong(f"the new adapter has the tensors {sorted(new)} at {path}, the old one {sorted(own)}")
    mine: Any = adapter.config
    ratio = config.scale_at(path) / mine.scale_at(path)
    made = {}
    for name, tensor in new.items():
        if any(size > most for size, most in zip(tensor.shape, own[name].shape, strict=True)):
            raise Wrong(f"{path}.{name}: {tuple(tensor.shape)} does not fit {tuple(own[name].shape)}")
        made[name] = padded(
            tensor * (ratio if name in ("up", "bias") else 1.0), torch.zeros(own[name].shape, device="cpu")
        )
    return made


def prepare_model_for_compiled_hotswap(
    model: nn.Module, *, target_rank: int | None = None, config: Any = None, check_compiled: str = "error"
) -> None:
    """Gives every LoRA the same rank, padded with zeros, so that adapters up to it can be swapped in.

    Args:
        model: a PEFT model, or a base with adapters. target_rank: the rank; None: the largest that a config has.
        config: one config, or several by name, in which the rank is noted; ranks are read from the model.
        check_compiled: "error", "warn" or "ignore" for a model that is compiled already.

    Raises:
        Wrong: the model is compiled, or a rank smaller than one that is there.
    """
    _check_compiled(model, check_compiled)
    base = base_of(model)
    if KEY not in base.__dict__:
        raise Wrong("No adapter layers found on the model, so none can be prepared; get_peft_model comes first")
    state = state_of(base)
    with refusals():
        for name, one in state.configs.items():
            if one.word != "LORA":
                raise Wrong(f"hot-swapping is for LORA; {name!r} is {one.word}")
            if target_rank is not None:
                _widen(state, name, target_rank)
    if target_rank is not None and config is not None:
        for one in config.values() if isinstance(config, Mapping) else (config,):
            one.r, one.rank_pattern = target_rank, dict.fromkeys(one.rank_pattern, target_rank)


def _check_compiled(model: nn.Module, wanted: str) -> None:
    if wanted not in ("error", "warn", "ignore"):
        raise Wrong(f"check_compiles should be one of 'error', 'warn', or 'ignore', got '{wanted}' instead.")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        said = "Call prepare_model_for_compiled_hotswap *before* compiling the model"
        if wanted == "error":
            raise Wrong(said)
        if wanted == "warn":
            warnings.warn(
                "prepare_model_for_compiled_hotswap was called with a model that is already compiled. This will likely "
                f"result in re-compilation, hurting performance. {said}.",
                PeftWarning,
                stacklevel=3,
            )


@torch.no_grad()
def _widen(state: State, name: str, rank: int) -> None:
    """Pads one adapter with zeros to a rank; its change stays the same."""
    ranks = {path: adapter.tensors()["down"].shape[0] for path, adapter in state.own_layers(name).items()}
    if max(ranks.values()) > rank:
        path = max(ranks, key=ranks.__getitem__)
        raise Wrong(
            f"Trying to pad the adapter to the target rank {rank}, but the original rank is larger ({ranks[path]}) "
            f"at {path}"
        )
    for path, adapter in state.own_layers(name).items():
        groups = getattr(adapter.site.module, "groups", 1)
        if rank % groups:
            raise Wrong(
                f"Trying to pad a {type(plain_view(adapter.site.module)).__name__} LoRA adapter with groups={groups} "
                f"to target rank {rank}, but the target rank is not divisible by {groups}. Please choose a target "
                f"rank that is divisible by {groups}. ({path})"
            )
    if min(ranks.values()) < rank:
        with any_rank():
            grow(state.model, name, rank)
        for path, adapter in state.own_layers(name).items():
            adapter.tensors()["down"][ranks[path] :].zero_()
