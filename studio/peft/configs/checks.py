"""What PEFT refuses or warns of when a config of LoRA's kind is made; a folder that it would refuse is not written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from studio.adapters import Site
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = [
    "WrongType",
    "check_convertible",
    "check_lora",
    "check_lora_layers",
    "note_layers",
    "note_name",
    "note_starts",
    "prefix_of",
    "takes_weights",
]


class WrongType(Wrong, TypeError):
    """A value of another type than its field's; a ``TypeError`` too, which is what PEFT raises."""


def check_lora(config: Any, parts: Mapping[str, Callable[[], Any]]) -> None:
    """Checks the fields that say how a LoRA starts, against each other.

    Args:
        config: one of PEFT's, just made. parts: its fields that hold a small config -> what makes the usual one, which
            is put where a start has one and none is given.

    Raises:
        Wrong: fields that PEFT does not have together. WrongType: a text in the place of a list.
    """
    if isinstance(config.target_parameters, str):
        raise WrongType(
            "`target_parameters` must be a list of strings or None. "
            f"({config.target_parameters!r} is one string: write [{config.target_parameters!r}])"
        )
    start = config.init_lora_weights
    if config.lora_bias and start not in (True, False):
        raise Wrong(
            "The argument lora_bias=True is only supported with init_lora_weights=True or False, got "
            f"init_lora_weights={start} instead. studio.LoRA(use_bias=True, init=...) has both."
        )
    if config.lora_bias and config.use_dora:
        raise Wrong("The argument lora_bias=True is not supported for DoRA, please pass use_dora=False")
    _check_parts(config, start, parts)
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern) and takes_weights(start):
        _say(
            "Using Rank-Stabilized LoRA with rank_pattern/alpha_pattern and post-training conversion of modified "
            "base weights PiSSA/CorDA/OLoRA/LoRA-GA means that you won't be able to pass "
            "`path_initial_model_for_weight_conversion` to `save_pretrained`."
        )


def check_lora_layers(config: Any, ours: Any, sites: Mapping[str, Site]) -> None:
    """Checks a LoRA against the layers that it is put on.

    Args:
        config: PEFT's. ours: the studio's. sites: path -> layer.

    Raises:
        Wrong: what PEFT refuses at such a layer, so that no folder of its could hold it.
    """
    for path, site in sites.items():
        module, rank = site.module, ours.rank_at(path)
        kind = type(module).__name__
        if config.lora_bias and site.kind == "embedding":
            raise Wrong(f"lora_bias=True is not supported for Embedding ({path}), please pass lora_bias=False.")
        if config.use_dora and isinstance(module, nn.MultiheadAttention):
            raise Wrong(
                f"MultiheadAttention does not support DoRA (yet), please set use_dora to False. ({path}; studio.DoRA "
                "has it)"
            )
        groups = getattr(module, "groups", 1) if site.kind == "conv" else 1
        if rank % groups:
            raise Wrong(
                f"Targeting a {kind} with groups={groups} and rank {rank}. Currently, support is limited to conv "
                "layers where the rank is divisible by groups. Either choose a different rank or do not target this "
                f"specific layer. ({path}; studio.LoRA has it)"
            )
        if config.init_lora_weights == "orthogonal" and rank % 2:
            raise Wrong(
                f"Orthogonal initialization requires the LoRA rank to be even, got {rank} instead. ({path}; "
                "studio.LoRA(init='orthogonal') takes any)"
            )
        if config.lora_bias and site.bias is None:
            _say(
                f"`lora_bias=True` was passed but the targeted layer of type {kind} has no bias ({path}): merging "
                "gives it one, which PEFT does not"
            )


def note_layers(config: Any, sites: Mapping[str, Site]) -> None:
    """Says what PEFT could not do with an adapter on its layers.

    Args:
        config: PEFT's. sites: path -> layer.
    """
    text = config.settings.note(sites)
    if text:
        _say(text)


def prefix_of(config: Any) -> str:
    """Returns what PEFT's names of a method's tensors begin with.

    Args:
        config: PEFT's, or its class.
    """
    return config.settings.prefix or f"{config.word.lower()}_"


def takes_weights(start: Any) -> bool:
    """Says whether a start of that name is taken out of the weights, which PEFT changes then."""
    word = start.lower() if isinstance(start, str) else ""
    return word in ("olora", "corda", "lora_ga") or word.startswith("pissa")


def _check_parts(config: Any, start: Any, parts: Mapping[str, Callable[[], Any]]) -> None:
    """Says where a small config is left out that its start has, or given without its start."""
    if config.loftq_config and start != "loftq":
        config.loftq_config = {}
        _say("`loftq_config` specified but will be ignored when `init_lora_weights` is not 'loftq'.")
        return
    for word, kind in (("eva", "EVA"), ("corda", "CorDA")):
        name = f"{word}_config"
        given = getattr(config, name)
        if start == word and given is None:
            _say(f"`init_lora_weights` is '{word}' but `{name}` is not specified. Using default {kind} config.")
            setattr(config, name, parts[name]())
        elif start != word and given is not None:
            _say(f"`{name}` specified but will be ignored when `init_lora_weights` is not '{word}'.")


def check_convertible(configs: Iterable[Any]) -> None:
    """Checks that adapters can be saved as plain pairs of twice the rank.

    Raises:
        Wrong: one with a rank-stabilised scale and patterns, which PEFT's config cannot say of such a pair.
    """
    for config in configs:
        patterns = getattr(config, "rank_pattern", None) or getattr(config, "alpha_pattern", None)
        if patterns and getattr(config, "use_rslora", False):
            raise Wrong(
                "Passing `path_initial_model_for_weight_conversion` to `save_pretrained` is not supported when using "
                "Rank-Stabilized LoRA with rank_pattern/alpha_pattern; studio.save(model.get_base_model(), file) has it"
            )


def note_name(config: Any, name: str) -> None:
    """Says that an adapter's name is a part of PEFT's names of its tensors, which PEFT then cannot tell apart.

    Args:
        config: PEFT's. name: the adapter's name.
    """
    prefix = prefix_of(config)
    inside = len(name) > 1 and name in prefix  # one letter within a word confuses nothing, whatever PEFT says
    if not config.is_prompt_learning and (inside or prefix.startswith(name)):
        _say(
            f"Adapter name '{name}' should not be contained in the prefix '{prefix}'. PEFT may lose the adapter's "
            "tensors when it loads them."
        )


def note_starts(configs: Iterable[Any]) -> None:
    """Says of several adapters on one base that PEFT would change the base under them."""
    starts = [getattr(config, "init_lora_weights", None) for config in configs]
    for word, kind in (("pissa", "PiSSA"), ("corda", "CorDA"), ("olora", "OLoRA")):
        if word in starts and len(starts) > 1:
            _say(
                f"{kind} changes the base weights of the model and should thus not be used with other adapters in "
                "PEFT; here the base stays, and each adapter adds its own change. "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...) writes one that PEFT can have "
                "beside others."
            )
            break


def _say(text: str) -> None:
    warnings.warn(text, PeftWarning, stacklevel=6)
