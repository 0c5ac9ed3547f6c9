"""PEFT's helpers that say which modules a config names: ``peft.tuners.tuners_utils`` and ``peft.utils.other``."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from studio.peft.configs.select import ends_with, select, tied_with_embedding
from studio.peft.model.names import names_of_tensors
from studio.peft.model.state import state_of
from studio.peft.model.tuner import BaseTuner, base_of, tuner_of
from studio.peft.terms.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from studio.peft.terms.errors import Wrong

__all__ = [
    "Excluded",
    "all_linear_named",
    "check_target_module_exists",
    "inspect_matched_modules",
    "keys_under",
    "match_target_against_key",
    "minimal_endings",
    "names_tied_with_embedding",
    "no_split_modules",
    "prefixes_of_keys",
]


class Excluded:
    """Says that a module is not a target because it is excluded; false."""

    def __bool__(self) -> bool:
        return False


def match_target_against_key(target_pattern: str, key: str) -> re.Match[str] | None:
    """Returns the match of an expression with a whole name, or None."""
    return re.fullmatch(target_pattern, key)


def check_target_module_exists(config: Any, key: str) -> Any:
    """Says whether a config names the module ``key``: something true if so, :class:`Excluded` if it is left out."""
    exclude, saved = getattr(config, "exclude_modules", None), getattr(config, "modules_to_save", None) or ()
    if exclude and (re.fullmatch(exclude, key) if isinstance(exclude, str) else _ends(key, exclude)):
        return Excluded()
    if any(re.match(rf"(^|.*\.){name}($|\..*)", key) for name in saved):
        return Excluded()
    targets, layers = config.target_modules, getattr(config, "layers_to_transform", None)
    if isinstance(targets, str):
        return match_target_against_key(targets, key)
    if targets is None or not _ends(key, targets):
        return False
    if key in targets or layers is None or layers == []:
        return True
    words = getattr(config, "layers_pattern", None) or []
    words = [words] if isinstance(words, str) else words
    expressions = [rf"(?:^|.*?\.){word}\.(\d+)\." for word in words] or [r".*?\.[^.]*\.(\d+)\."]
    hits = [re.match(expression, key) for expression in expressions]
    number = next((int(hit.group(1)) for hit in hits if hit), None)
    return number is not None and number in ([layers] if isinstance(layers, int) else layers)


def _ends(key: str, endings: Iterable[str]) -> bool:
    return any(ends_with(key, ending) for ending in endings)


def inspect_matched_modules(tuner: BaseTuner, adapter_name: str = "default") -> dict[str, list[str]]:
    """Returns the names of the modules that an adapter is on ("matched"), and of all others ("unmatched")."""
    state = state_of(base_of(tuner))
    on = state.own_layers(adapter_name)
    names = [name for name, _ in state.model.named_modules() if ".adapters." not in f".{name}."]
    return {"matched": [name for name in names if name in on], "unmatched": [name for name in names if name not in on]}


def all_linear_named(peft_config: Any, model: nn.Module) -> Any:
    """Puts the names of the layers that ``target_modules="all-linear"`` means in its place."""
    targets = getattr(peft_config, "target_modules", None)
    if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        asked = copy.copy(peft_config)
        asked.target_modules = INCLUDE_LINEAR_LAYERS_SHORTHAND
        peft_config.target_modules = set(select(base_of(model), asked))
    return peft_config


def minimal_endings(target_modules: Collection[str], other_module_names: Collection[str]) -> set[str]:
    """Returns the shortest endings that name all of the targets and none of the others.

    Args:
        target_modules, other_module_names: whole names.

    Raises:
        Wrong: the targets are one text, none, have an empty name, or one of the others.
    """
    if isinstance(target_modules, str) or not target_modules:
        raise Wrong("target_modules should be a list or set of strings.")
    if "" in target_modules:
        raise Wrong("target_modules should not contain an empty string.")
    common = sorted(set(target_modules) & set(other_module_names))
    if common:
        raise Wrong(
            "target_modules and other_module_names contain common elements, this should not happen: "
            f"{common[0]!r} is the first"
        )
    others = {ending for name in other_module_names for ending in _endings(name)}
    found: set[str] = set()
    for name in sorted(target_modules, key=_endings):
        if not any(name == one or name.endswith("." + one) for one in found):
            found.add(next((ending for ending in _endings(name) if ending not in others), name))
    return found


def _endings(name: str) -> list[str]:
    """The endings of a name in whole words, short ones first."""
    parts = name.split(".")
    return [".".join(parts[index:]) for index in reversed(range(len(parts)))]


def prefixes_of_keys(model: nn.Module, adapter_name: str | None = None) -> set[str]:
    """Returns what the keys of the adapters' tensors begin with in a PEFT model.

    Args:
        model: a PEFT model, or a base with adapters. adapter_name: only that adapter's; None: all.
    """
    state = state_of(base_of(model))
    prefix = "" if tuner_of(model) is not None else "base_model.model."
    found = set()
    for theirs in names_of_tensors(state).values():
        words = theirs.removeprefix(prefix).split(".")
        if "token_adapter" in words:
            continue  # they belong to the module around them
        owners = [index for index, word in enumerate(words) if word in state.configs]
        if owners and adapter_name is None:
            found.add(".".join(words[: owners[-1]]))
        elif owners and words[owners[-1]] == adapter_name:
            found.add(".".join(words[: owners[-1] + 1]))
    return found


def keys_under(state_dict: Mapping[str, Any], prefixes: Collection[str]) -> dict[str, Any]:
    """Returns the entries whose keys begin with one of the prefixes, in whole words."""
    return {key: one for key, one in state_dict.items() if any(f"{key}.".startswith(f"{p}.") for p in prefixes)}


def no_split_modules(model: nn.Module) -> set[str]:
    """Returns the classes that a model and the models in it say are not to be split over devices."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


def names_tied_with_embedding(model: nn.Module) -> list[str]:
    """Returns the names of the layers whose weight is the input embedding's.

    Raises:
        Wrong: the model has no input embedding.
    """
    return tied_with_embedding(base_of(model))
