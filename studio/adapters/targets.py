"""Targets: which layers of a model a pattern names."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from torch import nn

from studio.adapters.site import is_site
from studio.errors import BadConfig, NoTargets, nearest
from studio.families import family_of

__all__ = ["PRESETS", "find_targets", "matches"]

PRESETS: Final = ("attention", "attention+mlp", "all-linear", "conv", "subject", "style")
"""Names that stand for patterns; the model's family resolves them, or its structure where the family is unknown."""

_GLOB: Final = re.compile(r"[*?\[]")


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The expression of a glob or ``re:`` pattern; None for a plain name."""
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:])
        except re.error as error:
            raise BadConfig(f"the target {pattern!r} is not a regular expression: {error}") from None
    if not _GLOB.search(pattern):
        return None
    escaped = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))
    return re.compile(rf"(?:.*\.)?{escaped}")


def matches(pattern: str, path: str) -> bool:
    """Says whether ``pattern`` names ``path``: exactly, as a suffix, as a glob, or as ``re:`` and an expression.

    Example:
        >>> [matches(p, "mid.0.to_q") for p in ("mid.0.to_q", "to_q", "o_q", "mid.*.to_?", "re:.*to_[qk]")]
        [True, True, False, True, True]
    """
    expression = _compiled(pattern)
    if expression is not None:
        return expression.fullmatch(path) is not None
    return path == pattern or path.endswith("." + pattern)


def _structural(preset: str, layers: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]) -> list[str]:
    """Resolves a preset by structure, for a model whose family is not known."""
    linear = [path for path, layer in layers.items() if not _is_convolution(layer) and not _is_embedding(layer)]
    if preset == "conv":
        return [path for path, layer in layers.items() if _is_convolution(layer)]
    if preset in ("all-linear", "style"):
        return [path for path in linear if not re.search(r"(^|\.)(lm_head|embed_out|score|classifier)$", path)]
    blocks = [path for path, module in modules.items() if "attention" in type(module).__name__.lower()]
    blocks += [path for path in modules if re.search(r"(^|\.)(attn\d?|self_attn|attention|mha)$", path)]
    if preset in ("attention+mlp", "subject"):
        blocks += [path for path in modules if re.search(r"(^|\.)(mlp|ff|feed_forward|ffn)$", path)]
    return [path for path in linear if any(path == block or path.startswith(block + ".") for block in blocks)]


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _is_embedding(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding)


def find_targets(
    components: Mapping[str, nn.Module],
    targets: str | Sequence[str],
    exclude: Sequence[str] = (),
    *,
    chosen: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Finds the layers that ``targets`` names.

    Args:
        components: component name to module; ``{"": model}`` for a model by itself.
        targets: a preset, or patterns; a pattern may begin with a component's name.
        exclude: patterns of layers to leave out.
        chosen: the components to look in; None looks in all for patterns, and for a preset in the denoiser, or in
            all where there is none.

    Returns:
        Component name to paths, in the order of the model; components without a match are left out.

    Raises:
        NoTargets: a pattern, or a preset in a chosen component, that matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> find_targets({"": net}, ["2"])
        {'': ['2']}
        >>> find_targets({"": net}, ["3"])
        Traceback (most recent call last):
        ...
        studio.errors.NoTargets: the target '3' matches no layer; the nearest layers are: 0, 2
    """
    for component in chosen or ():
        if component not in components:
            raise NoTargets(f"there is no component {component!r}; the model has {', '.join(components)}")
    looked = {name: module for name, module in components.items() if chosen is None or name in chosen}
    layers = {name: _layers(module) for name, module in looked.items()}
    if isinstance(targets, str) and targets in PRESETS:
        found = _preset(targets, looked, layers, chosen)
    else:
        patterns = (targets,) if isinstance(targets, str) else tuple(targets)
        found = _patterns(patterns, layers)
    for pattern in exclude:
        found = {name: [path for path in paths if not _names(pattern, name, path)] for name, paths in found.items()}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise NoTargets(f"exclude={list(exclude)!r} leaves nothing of the targets {targets!r}")
    return found


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in module.named_modules() if is_site(layer) and not _inside_adapter(path)}


def _inside_adapter(path: str) -> bool:
    return ".adapters." in f".{path}."


def _names(pattern: str, component: str, path: str) -> bool:
    return matches(pattern, path) or (component != "" and matches(pattern, f"{component}.{path}"))


def _with_attention_outputs(chosen: Iterable[str], layers: Mapping[str, nn.Module]) -> list[str]:
    """Adds the output projection of every MultiheadAttention that was named: a target is the whole attention."""
    wanted = set(chosen)
    wanted |= {f"{path}.out_proj" for path in wanted if isinstance(layers[path], nn.MultiheadAttention)}
    return [path for path in layers if path in wanted]


def _patterns(patterns: Sequence[str], layers: Mapping[str, Mapping[str, nn.Module]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {name: set() for name in layers}
    for pattern in patterns:
        hits = [(name, path) for name in layers for path in layers[name] if _names(pattern, name, path)]
        if not hits:
            everything = [f"{name}.{path}".strip(".") for name in layers for path in layers[name]]
            preset = difflib.get_close_matches(pattern, PRESETS, 1, 0.75)
            meant = f"did you mean the preset {preset[0]!r}? " if preset else ""
            raise NoTargets(f"the target {pattern!r} matches no layer; {meant}{_hint(pattern, everything)}")
        for name, path in hits:
            found[name].add(path)
    return {name: _with_attention_outputs(paths, layers[name]) for name, paths in found.items()}


def _hint(pattern: str, paths: Sequence[str]) -> str:
    """The nearest layers, each kind once: a pattern is compared with the last words of a path too."""
    ends: dict[str, str] = {}
    words = pattern.removeprefix("re:").count(".") + 1
    for path in paths:
        ends.setdefault(".".join(path.split(".")[-words:]), path)
    if not ends:
        return "the model has no layer that can be adapted"
    return f"the nearest layers are: {', '.join(ends[end] for end in nearest(pattern, ends))}"


def _preset(
    preset: str,
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, Mapping[str, nn.Module]],
    chosen: Sequence[str] | None,
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, module in modules.items():
        family = family_of(module)
        component = name or ("" if family is None else _component_of(family.encoders, family.denoiser, module))
        patterns = None if family is None else family.presets.get(preset, {}).get(component)
        if chosen is None and name and family is not None and name != family.denoiser:
            continue  # a preset means the denoiser; encoders are adapted when they are asked for
        if patterns is None:
            paths = _structural(preset, layers[name], dict(module.named_modules()))
        else:
            paths = [path for path in layers[name] if any(matches(pattern, path) for pattern in patterns)]
        if paths:
            found[name] = _with_attention_outputs(paths, layers[name])
        elif chosen is not None:
            raise NoTargets(f"the preset {preset!r} matches no layer of {name or 'the model'}; name patterns instead")
    if not found:
        raise NoTargets(f"the preset {preset!r} matches no layer of the model; name patterns instead")
    return found


def _component_of(encoders: Sequence[str], denoiser: str, module: nn.Module) -> str:
    return encoders[0] if encoders and "Text" in type(module).__name__ else denoiser
