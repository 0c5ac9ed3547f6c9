"""From a config of PEFT's to one of the studio's, by the tables that the methods carry themselves."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from studio.adapters import METHODS, Adapter, AdapterConfig
from studio.adapters.contract.foreign import Either
from studio.adapters.contract.pattern import exactly, matches
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.hosting.assembly import site_at
from studio.errors import BadConfig, nearest
from studio.peft.configs.checks import check_lora_layers, note_layers
from studio.peft.configs.config import PeftConfig, PromptLearningConfig
from studio.peft.configs.select import ends_with, model_type
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["method_of", "random_start", "start_of", "translate"]

# fields that this package acts on itself, whatever the method
_ELSEWHERE: Final = frozenset(
    {
        *(one.name for one in dataclasses.fields(PeftConfig)),
        *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"),
        *("trainable_token_indices", "target_parameters", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
        *(
            "ensure_weight_tying",
            "token_dim",
            "num_attention_heads",
            "num_layers",
            "num_transformer_submodules",
            "runtime_config",
        ),
    }
)


def method_of(config: PeftConfig) -> str:
    """Returns the method that a config asks for: the one whose flags it has.

    Args:
        config: PEFT's.

    Raises:
        Wrong: the studio has no such method.
    """
    fitting: list[tuple[int, str]] = []
    defaults = {one.name: one.default for one in dataclasses.fields(config)}
    for name in METHODS:
        peft = METHODS[name].adapter.peft
        flags = peft.settings.flags
        if peft.type == config.word and all(getattr(config, flag, None) == value for flag, value in flags.items()):
            special = sum(defaults.get(flag) != value for flag, value in flags.items())
            fitting.append((special, name))
    if not fitting:
        known = sorted({METHODS[name].adapter.peft.type for name in METHODS} - {""})
        raise Wrong(f"the studio has no method for peft_type={config.word!r}; it has {', '.join(known)}")
    return max(fitting, key=lambda found: (found[0], -len(found[1])))[1]


def translate(config: Any, model: nn.Module, paths: Sequence[str]) -> AdapterConfig:
    """Makes the studio's config for the layers at ``paths``.

    Args:
        config: PEFT's. model: the base. paths: the layers that it names there.

    Raises:
        Wrong: a field that the studio does not implement differs from its default. BadConfig: one is impossible.
    """
    method = method_of(config)
    ours, adapter = METHODS[method], METHODS[method].adapter
    settings = adapter.peft.settings
    _check_fields(config, adapter)
    fields = _stated_fields(config, adapter)
    sites = {path: site_at(model, path, adapter.kinds) for path in paths}
    fields |= settings.new(config, sites)
    start = start_of(config)
    known = {one.name for one in dataclasses.fields(ours)}
    if isinstance(start, str) and settings.init not in settings.reads:
        if "init" not in known:
            raise Wrong(f"{type(config).__name__}: the start {start!r} is not one that {method} has")
        fields |= settings.start(config, start)
    if paths:
        fields["targets"] = tuple(exactly(some) for some in _by_kind(model, paths))
    if issubclass(ours, RankedConfig):
        fields |= {name: _patterns(config, name, paths) for name in ("rank_pattern", "alpha_pattern")}
    if adapter.either is not None:
        second = _second(config, model, paths, adapter.either)
        fields[adapter.either.field] = (exactly(second),) if second else ()
    if getattr(config, "fan_in_fan_out", False):
        _check_fan(model, paths)
    stray = sorted(set(fields) - known)
    if stray:
        raise Wrong(f"{type(config).__name__}: {method} has no field {stray[0]!r}")
    made = ours(**fields)
    note_layers(config, sites)
    if hasattr(config, "lora_bias"):
        check_lora_layers(config, made, sites)
    return made


def _by_kind(model: nn.Module, paths: Sequence[str]) -> list[list[str]]:
    """The paths of layers, and those of bare parameters: a pattern that names layers means no parameters."""
    modules = dict(model.named_modules())
    layers = [path for path in paths if path in modules]
    return [some for some in (layers, [path for path in paths if path not in modules]) if some]


def _stated_fields(config: Any, adapter: type[Adapter]) -> dict[str, Any]:
    """Our fields that a config of PEFT's states, whatever it is put on."""
    peft, settings = adapter.peft, adapter.peft.settings
    fields: dict[str, Any] = {}
    for name, theirs in settings.fields.items():
        value = getattr(config, theirs, None)
        if value is not None:
            fields[name] = value
    return {**fields, **peft.fixed, **settings.config(config.to_dict())}


def start_of(config: Any) -> bool | str:
    """Returns the start that a config of PEFT's asks for: a word, True for the usual one, False for a random one."""
    value = getattr(config, config.settings.init, None)
    if value is None:
        return True
    return value.lower() if isinstance(value, str) else bool(value)


def _check_fields(config: Any, adapter: type[Adapter]) -> None:
    """Refuses fields that nothing acts on and that differ from their defaults."""
    settings, part = adapter.peft.settings, f"{start_of(config)}_config"
    used = {*_ELSEWHERE, *settings.fields.values(), *settings.flags, *settings.reads, settings.init}
    used |= {part} & settings.parts.keys()
    used |= set() if adapter.either is None else {adapter.either.setting}
    for one in dataclasses.fields(config):
        made = one.default_factory
        usual = made() if made is not dataclasses.MISSING else one.default
        value = getattr(config, one.name)
        if one.name not in used and value != usual:
            close = ", ".join(nearest(one.name, settings.fields.values(), 3))
            hint = f"; the nearest fields that are: {close}" if close else ""
            raise Wrong(
                f"{type(config).__name__}({one.name}={value!r}) is not implemented for {adapter.peft.type}{hint}"
            )


def _patterns(config: Any, name: str, paths: Sequence[str]) -> dict[str, Any]:
    """PEFT's table of patterns as the core's: an expression that the end of a name must match, in whole words."""
    table: Mapping[str, Any] = getattr(config, name, None) or {}
    found: dict[str, Any] = {}
    for pattern, value in table.items():
        expression = rf"re:(?:.*\.)?(?:{pattern})"
        try:
            hit = any(matches(expression, path) for path in paths)
        except BadConfig as error:
            raise Wrong(f"{name}: {pattern!r} is not a regular expression: {error}") from None
        if not hit:
            ends = {path.rpartition(".")[2] for path in paths} | set(paths)
            raise Wrong(f"{name}: {pattern!r} matches no target; the nearest are: {', '.join(nearest(pattern, ends))}")
        found[expression] = value
    return found


def _second(config: Any, model: nn.Module, paths: Sequence[str], either: Either) -> list[str]:
    """The layers that have the second of two tensors of one name."""
    stated = getattr(config, either.setting)
    if stated is None:
        usual = either.usual.intersection(config.settings.targets.get(model_type(model) or "", ()))
        return [path for path in paths if any(ends_with(path, name) for name in usual)]
    if isinstance(stated, str):
        found = [path for path in paths if matches(f"re:{stated}", path)]
        if not found:
            raise Wrong(f"{either.setting}={stated!r} matches no target")
        return found
    for name in sorted(stated):
        if not any(ends_with(path, name) for path in paths):
            raise Wrong(f"{either.setting}: {name!r} names no target")
    return [path for path in paths if any(ends_with(path, name) for name in stated)]


def _check_fan(model: nn.Module, paths: Sequence[str]) -> None:
    wrong = [path for path in paths if isinstance(model.get_submodule(path), nn.Linear)]
    if wrong:
        warnings.warn(
            f"fan_in_fan_out is set to True but the target module {wrong[0]} is a torch.nn.Linear; how a layer stores "
            "its weight is read from the layer, so the setting makes no difference",
            PeftWarning,
            stacklevel=6,
        )


@torch.no_grad()
def random_start(config: Any, tensors: Mapping[str, torch.Tensor], trained: Sequence[str]) -> None:
    """Fills what a method trains with random numbers where the config says that the start is not the usual one.

    PEFT's ``init_…=False`` makes an adapter that changes the output from the beginning, which tests use.
    """
    if start_of(config) is not False or isinstance(config, PromptLearningConfig):
        return
    for name in trained:
        tensor = tensors.get(name)
        if tensor is not None and tensor.device.type != "meta":
            spread = max(tensor.shape[-1], 1) ** -0.5 if tensor.dim() > 1 else 0.25
            tensor.add_(torch.empty_like(tensor).uniform_(-spread, spread))
