"""From a config of PEFT's to one of the studio's, by the tables that the methods carry themselves."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from studio.adapters import METHODS, AdapterConfig, Foreign, Site, site_of
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import nearest
from studio.peft.configs.config import PeftConfig, PromptLearningConfig
from studio.peft.configs.defaults import default_feedforward, default_targets
from studio.peft.configs.select import ends_with
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["INIT_FIELDS", "foreign_of", "method_of", "random_start", "translate"]

INIT_FIELDS: Final = ("init_lora_weights", "init_ia3_weights", "init_weights")
"""What PEFT calls the start; True is the usual one, False a random one that changes the output."""

# fields that this package acts on itself, whatever the method
_ELSEWHERE: Final = frozenset(
    {
        *(one.name for one in dataclasses.fields(PeftConfig)),
        *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"),
        *("trainable_token_indices", "target_parameters", "feedforward_modules", "rank_pattern", "alpha_pattern"),
        *("fan_in_fan_out", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"),
        *("save_projection", "runtime_config", *INIT_FIELDS),
    }
)

_STARTS: Final = {"lycoris": "kaiming"}


def foreign_of(method: str) -> Foreign:
    """Returns a method's table of foreign names."""
    return METHODS[method].adapter.foreign


def method_of(config: PeftConfig) -> str:
    """Returns the method that a config asks for: the one whose flags it has.

    Raises:
        Wrong: the studio has no such method.
    """
    fitting: list[tuple[int, str]] = []
    defaults = {one.name: one.default for one in dataclasses.fields(config)}
    for name in METHODS:
        foreign = foreign_of(name)
        if foreign.peft_type == config.word and all(
            getattr(config, flag, None) == value for flag, value in foreign.peft_flags.items()
        ):
            special = sum(defaults.get(flag) != value for flag, value in foreign.peft_flags.items())
            fitting.append((special, name))
    if not fitting:
        known = sorted({foreign_of(name).peft_type for name in METHODS} - {""})
        raise Wrong(f"the studio has no method for peft_type={config.word!r}; it has {', '.join(known)}")
    return max(fitting, key=lambda found: (found[0], -len(found[1])))[1]


def translate(config: Any, model: nn.Module, paths: Sequence[str]) -> AdapterConfig:
    """Makes the studio's config for the layers at ``paths``.

    Raises:
        Wrong: a field that the studio does not implement differs from its default.
    """
    method = method_of(config)
    kind, foreign = METHODS[method], foreign_of(method)
    _check_fields(config, foreign)
    fields: dict[str, Any] = {}
    for ours, theirs in foreign.peft_fields.items():
        value = getattr(config, theirs, None)
        if value is not None and theirs not in INIT_FIELDS:
            fields[ours] = value
    if foreign.peft_type in _SPECIAL:
        fields |= _SPECIAL[foreign.peft_type][1](config, model, paths)
    fields |= foreign.peft_way.config({**config.to_dict(), "peft_version": config.peft_version or "0.21"})
    known = {one.name for one in dataclasses.fields(kind)}
    start = _start_of(config)
    if isinstance(start, str):
        if "init" not in known:
            raise Wrong(f"{type(config).__name__}: the start {start!r} is not one that {method} has")
        fields |= _start_fields(config, start)
    if paths:
        fields["targets"] = (exactly(paths),)
    if issubclass(kind, RankedConfig):
        fields |= {name: _patterns(config, name, paths) for name in ("rank_pattern", "alpha_pattern")}
    if foreign.inputs is not None:
        second = _second(config, model, paths)
        fields[foreign.inputs[0]] = (exactly(second),) if second else ()
    if getattr(config, "fan_in_fan_out", False):
        _check_fan(model, paths)
    stray = sorted(set(fields) - known)
    if stray:
        raise Wrong(f"{type(config).__name__}: {method} has no field {stray[0]!r}")
    return kind(**fields)


def _start_of(config: Any) -> bool | str:
    """The start that a config asks for: a word, or True or False."""
    for name in INIT_FIELDS:
        value = getattr(config, name, None)
        if value is not None:
            return value if isinstance(value, (bool, str)) else bool(value)
    return True


def _start_fields(config: Any, start: str) -> dict[str, Any]:
    """The core's fields of a start that PEFT names by a word, and sometimes a config of its own."""
    fast = re.fullmatch(r"pissa_niter_(\d+)", start)
    if fast is not None:
        return {"init": "pissa-fast", "iterations": int(fast.group(1))}
    found: dict[str, Any] = {"init": _STARTS.get(start, start)}
    name = f"{start}_config"
    given = getattr(config, name, None)
    if start not in _OWN_CONFIGS or not given:
        return found
    kind = type(given) if dataclasses.is_dataclass(given) else None
    stated = dataclasses.asdict(given) if kind is not None else dict(given)
    for field, value in stated.items():
        if field == "rho" and start == "eva":
            found["rho"] = float(value)
        elif field == "corda_method" and start == "corda":
            found["init"] = "corda-kpm" if value == "kpm" else "corda"
        elif value != _OWN_CONFIGS[start].get(field):
            raise Wrong(f"LoraConfig({name}={{{field!r}: {value!r}}}) is not implemented; leave it at its default")
    return found


_OWN_CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "eva": {
        "tau": 0.99, "use_label_mask": True, "label_mask_value": -100, "whiten": False, "adjust_scaling_factors": True,
    },
    "corda": {
        "cache_file": None, "covariance_file": None, "verbose": False, "use_float16_for_covariance": False,
        "prune_temporary_fields": True,
    },
    "loftq": {"loftq_bits": 4, "loftq_iter": 1},
}  # fmt: skip
"""Fields of the starts' own configs that have to be at their defaults."""


def _check_fields(config: Any, foreign: Foreign) -> None:
    start = _start_of(config)
    used = {f"{start}_config"} if start in _OWN_CONFIGS else set()
    used |= _ELSEWHERE | set(foreign.peft_fields.values()) | set(foreign.peft_flags)
    used |= _SPECIAL.get(foreign.peft_type, (frozenset(), None))[0]
    for one in dataclasses.fields(config):
        if one.name in used:
            continue
        made = one.default_factory
        usual = made() if made is not dataclasses.MISSING else one.default
        value = getattr(config, one.name)
        if value != usual:
            close = ", ".join(nearest(one.name, foreign.peft_fields.values(), 3))
            hint = f"; the nearest fields that are: {close}" if close else ""
            raise Wrong(
                f"{type(config).__name__}({one.name}={value!r}) is not implemented for {foreign.peft_type}{hint}"
            )


def _blocks(config: Any, model: nn.Module, paths: Sequence[str], size: int, count: int) -> dict[str, Any]:
    """The size of the blocks of a rotation, given as it is or as the number of blocks of a layer."""
    if bool(size) == bool(count):
        raise Wrong(
            f"{type(config).__name__}: give either the size of the blocks or their number, and 0 for the other; found "
            f"{size} and {count}"
        )
    if size:
        return {"block_size": size}
    widths = {path: _turned(site_of(model, path)) for path in paths}
    for path, width in widths.items():
        if width % count:
            raise Wrong(f"{type(config).__name__}: {count} blocks do not divide the {width} inputs of {path}")
    sizes = {path: width // count for path, width in widths.items()}
    usual = max(set(sizes.values()), key=list(sizes.values()).count)
    return {
        "block_size": usual,
        "block_pattern": {exactly([path]): one for path, one in sizes.items() if one != usual},
    }


def _turned(site: Site) -> int:
    """How many numbers a rotation turns: a layer's inputs, of an embedding the outputs."""
    return site.rows if site.kind == "embedding" else site.cols


def _oft(config: Any, model: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    return _blocks(config, model, paths, config.oft_block_size, config.r)


def _boft(config: Any, model: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    return {
        **_blocks(config, model, paths, config.boft_block_size, config.boft_block_num),
        "factors": config.boft_n_butterfly_factor,
    }


_SPECIAL: Final[Mapping[str, tuple[frozenset[str], Any]]] = {
    "ADALORA": (frozenset({"total_step"}), lambda config, model, paths: {}),  # update_and_allocate reads it
    "OFT": (
        frozenset(
            {"r", "oft_block_size", "coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms", "peft_version"}
        ),
        _oft,
    ),
    "ROAD": (frozenset({"variant", "group_size"}), lambda config, model, paths: {}),  # the method's own table reads it
    "BOFT": (frozenset({"boft_block_size", "boft_block_num", "boft_n_butterfly_factor"}), _boft),
}
"""Methods with fields that no table can say: which they are, and what makes ours of them."""


def exactly(paths: Sequence[str]) -> str:
    """A pattern of the core's that names exactly ``paths``."""
    return f"re:(?:{'|'.join(map(re.escape, paths))})"


def _patterns(config: Any, name: str, paths: Sequence[str]) -> dict[str, Any]:
    """PEFT's table of patterns as the core's: an expression that the end of a name must match, in whole words."""
    table: Mapping[str, Any] = getattr(config, name, None) or {}
    found: dict[str, Any] = {}
    for pattern, value in table.items():
        try:
            expression = re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise Wrong(f"{name}: {pattern!r} is not a regular expression: {error}") from None
        if not any(expression.match(path) for path in paths):
            ends = {path.rpartition(".")[2] for path in paths} | set(paths)
            raise Wrong(f"{name}: {pattern!r} matches no target; the nearest are: {', '.join(nearest(pattern, ends))}")
        found[rf"re:(?:.*\.)?(?:{pattern})"] = value
    return found


def _second(config: Any, model: nn.Module, paths: Sequence[str]) -> list[str]:
    """The layers whose inputs are scaled (IA³)."""
    stated = config.feedforward_modules
    if stated is None:
        if config.target_modules is not None:
            return []
        stated = default_feedforward(default_targets(model, config.word) or ())
    if isinstance(stated, str):
        found = [path for path in paths if re.fullmatch(stated, path)]
        if not found:
            raise Wrong(f"feedforward_modules={stated!r} matches no target")
        return found
    for name in sorted(stated):
        if not any(ends_with(path, name) for path in paths):
            raise Wrong(f"feedforward_modules: {name!r} names no target")
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
    if _start_of(config) is not False or isinstance(config, PromptLearningConfig):
        return
    for name in trained:
        tensor = tensors.get(name)
        if tensor is not None and tensor.device.type != "meta":
            spread = max(tensor.shape[-1], 1) ** -0.5 if tensor.dim() > 1 else 0.25
            tensor.add_(torch.empty_like(tensor).uniform_(-spread, spread))
