"""Which layers a config of PEFT's names, by PEFT's own rules; a name that fits nothing is refused."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from torch import nn

from studio.adapters.contract.pattern import matches
from studio.adapters.sites.kinds import is_site, kind_of, site_for
from studio.adapters.sites.parameter import experts_in
from studio.adapters.targets.structure import read_structure
from studio.errors import DoesNotFit, StudioError, nearest
from studio.files.names import Names
from studio.files.peft_parameters import names_of_parameters
from studio.files.soft import HEADS
from studio.peft.terms.errors import NoMatchingPeftModuleError, PeftWarning, Wrong

__all__ = [
    "ends_with",
    "model_type",
    "modules_named",
    "names_in",
    "parameters_of",
    "paths_to_save",
    "select",
    "tied_group",
    "tied_with_embedding",
]

ALL_LINEAR: Final = "all-linear"
_HEADS: Final = ("score", "classifier")


def ends_with(name: str, ending: str) -> bool:
    """Says whether ``ending`` is the end of a dotted name, in whole words."""
    return name == ending or name.endswith("." + ending)


def model_type(model: Any) -> str | None:
    """Returns the model type of a transformers model, or None."""
    config = getattr(model, "config", None)
    found = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return found if isinstance(found, str) else None


def names_in(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of the base by name, without those that adapters brought."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not {"adapters", "modules_to_save"} & set(name.split("."))
    }


def tied_with_embedding(model: nn.Module) -> list[str]:
    """Returns the sorted names of the layers whose weight is the input embedding's, if the model's config ties them.

    Raises:
        Wrong: the model has no input embedding.
    """
    ask = getattr(model, "get_input_embeddings", None)
    embedding = ask() if callable(ask) else None
    if embedding is None:
        raise Wrong(f"{type(model).__name__} has no get_input_embeddings, so no layer can be tied with an embedding")
    weight = embedding._parameters.get("weight")
    if weight is None or getattr(getattr(model, "config", None), "tie_word_embeddings", True) is False:
        return []
    layers = [(name, one) for name, one in model.named_modules() if one is not embedding]
    return sorted(name for name, one in layers if one._parameters.get("weight") is weight)


def tied_group(model: nn.Module) -> list[str]:
    """Returns the paths of the input embedding and of the layers whose weight is its own; none where none is tied."""
    ask = getattr(model, "get_input_embeddings", None)
    embedding = ask() if callable(ask) else None
    tied = [] if embedding is None else tied_with_embedding(model)
    return [name for name, one in names_in(model).items() if one is embedding or name in tied] if tied else []


def _with_tied(model: nn.Module, config: Any, paths: list[str]) -> list[str]:
    """The paths, and those of all tied layers where one of them is and the config has them stay tied."""
    if not getattr(config, "ensure_weight_tying", False) or getattr(config, "target_modules", None) == ALL_LINEAR:
        return paths
    group = tied_group(model)
    if not set(group) & set(paths):
        return paths
    return [name for name in names_in(model) if name in group or name in paths]


def modules_named(model: nn.Module, endings: Iterable[str], what: str) -> dict[str, list[str]]:
    """Finds the modules that each of ``endings`` names, exactly or in whole words at the end.

    Raises:
        NoMatchingPeftModuleError: one that names nothing, with the nearest that there are.
    """
    names = list(names_in(model))
    found: dict[str, list[str]] = {}
    for ending in endings:
        found[ending] = [name for name in names if ends_with(name, ending)]
        if not found[ending]:
            raise NoMatchingPeftModuleError(
                f"Target modules { {ending} } not found in the base model. ({what}: {_hint(ending, names)})"
            )
    return found


def paths_to_save(model: nn.Module, config: Any) -> list[str]:
    """Returns the paths of the modules that a config has trained whole; a head of its task need not be there.

    PEFT names all heads that a model for a task may have in every folder.

    Raises:
        NoMatchingPeftModuleError: a name that fits nothing, with the nearest that there are.
    """
    names = names_in(model)
    heads = HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())
    wanted = [
        one
        for one in getattr(config, "modules_to_save", None) or ()
        if one not in heads or any(ends_with(name, one) for name in names)
    ]
    found = modules_named(model, wanted, "modules_to_save")
    return _with_tied(model, config, list(dict.fromkeys(path for paths in found.values() for path in paths)))


def _hint(asked: str, names: Iterable[str]) -> str:
    words = asked.count(".") + 1
    ends = {".".join(name.split(".")[-words:]): name for name in names}
    return f"the nearest are: {', '.join(nearest(asked, ends))}"


def select(model: nn.Module, config: Any, kinds: Collection[str] = ()) -> list[str]:
    """Returns the paths of the layers that ``config`` adapts, in the order of the model.

    Args:
        model: the base. config: the config. kinds: the kinds of layers that its method covers.

    Raises:
        NoMatchingPeftModuleError: a target, or an excluded name, that fits nothing. Wrong: no targets and no default.
        UnsupportedLayer: a target that is no layer which can be adapted.
    """
    modules = names_in(model)
    targets = config.target_modules
    bare = _parameters_beside(model, config, targets)
    if bare and not targets:
        return bare
    if targets is None and config.settings.embedding:
        targets = _input_embedding(model)
    elif targets is None:
        targets = config.settings.targets.get(model_type(model) or "") or _queries_and_values(model)
        if not targets:
            raise Wrong(
                f"Please specify `target_modules` in `peft_config`: there is no default for the model type "
                f"{model_type(model)!r}, and no attention was found in {type(model).__name__}"
            )
    saved = paths_to_save(model, config)
    chosen = _all_linear(model, modules, config) if targets == ALL_LINEAR else _matching(modules, targets)
    chosen = [name for name in chosen if not any(name == one or name.startswith(one + ".") for one in saved)]
    chosen = _without(chosen, modules, getattr(config, "exclude_modules", None))
    _check_layers(chosen, modules, kinds)
    if getattr(config, "layers_to_transform", None) is not None or getattr(config, "layers_pattern", None):
        chosen = _numbered(chosen, targets, config.layers_to_transform, config.layers_pattern)
    chosen = _with_tied(model, config, chosen)
    if not chosen:
        raise NoMatchingPeftModuleError(
            "No modules were targeted for adaptation. This might be caused by a combination of target_modules="
            f"{_shown(targets)} with exclude_modules, modules_to_save and layers_to_transform, which leave none of them"
        )
    _check_apart(chosen, bare, modules)
    return chosen + bare


def _check_apart(chosen: Collection[str], bare: Collection[str], modules: Mapping[str, nn.Module]) -> None:
    both = next((name for name in bare if name in chosen), None)
    if both is not None:
        raise Wrong(
            f"Trying to wrap an `nn.Parameter` of layer {both!r} of type {type(modules[both]).__name__}, which is not "
            "a valid target. (target_modules names the layer too, and it gets one adapter: name it in one of the two)"
        )


def _input_embedding(model: nn.Module) -> set[str]:
    """The name of the input embedding, which a method of token rows trains where none is named."""
    ask = getattr(model, "get_input_embeddings", None)
    own = ask() if callable(ask) else None
    found = [name for name, module in names_in(model).items()
             if (ends_with(name, "embed_tokens") if own is None else module is own)]  # fmt: skip
    if not found:
        raise NoMatchingPeftModuleError(
            "Target modules embed_tokens not found in the base model. (It does not say which layer its input embedding "
            "is, get_input_embeddings: name the embedding in target_modules)"
        )
    return {found[0]}


def _parameters_beside(model: nn.Module, config: Any, targets: Any) -> list[str]:
    """The parameters that ``target_parameters`` names.

    Raises:
        NoMatchingPeftModuleError: none is named, and no layer either. DoesNotFit: a name that fits no parameter.
    """
    try:
        return _bare_parameters(model, config)
    except DoesNotFit as error:
        if targets:
            raise
        raise NoMatchingPeftModuleError(
            "No `target_modules` passed but also no `target_parameters` found. Please check the values for these "
            f"arguments. ({error})"
        ) from None


def parameters_of(model: nn.Module, config: Any) -> dict[str, str]:
    """Returns what is adapted for each of ``target_parameters``, a layer or the parameter -> the parameter's name.

    Args:
        model: the base. config: PEFT's.

    Raises:
        DoesNotFit: a name that fits no parameter.
    """
    found = _bare_parameters(model, config)
    modules = names_in(model) if found else {}
    return {path: f"{path}.weight" if path in modules else path for path in found}


def _bare_parameters(model: nn.Module, config: Any) -> list[str]:
    """The parameters that ``target_parameters`` names; those of a layer count as the layer.

    Raises:
        DoesNotFit: a name that fits no parameter.
    """
    wanted = getattr(config, "target_parameters", None)
    if not wanted:
        return []
    return list(names_of_parameters(Names(model), {"target_parameters": list(wanted)}).values())


def _queries_and_values(model: nn.Module) -> set[str]:
    """PEFT's usual targets, the projections of queries and values, for a model type that it has no row for."""
    if model_type(model) is None:
        return set()
    return {path for one in read_structure(model).attentions for path in (*one.query, *one.value)}


def _shown(targets: Any) -> str:
    return repr(targets if isinstance(targets, str) else sorted(targets))


def _matching(modules: Mapping[str, nn.Module], targets: str | Collection[str]) -> list[str]:
    """The modules that targets name; each must name one."""
    if isinstance(targets, str):
        found = [name for name in modules if matches(f"re:{targets}", name)]
        if not found:
            raise NoMatchingPeftModuleError(
                f"Target modules {targets!r} not found in the base model: the expression matches no whole name; "
                f"{_hint(targets, modules)}"
            )
    else:
        for target in sorted(targets):
            if not any(ends_with(name, target) for name in modules):
                raise NoMatchingPeftModuleError(
                    f"Target modules [{target!r}] not found in the base model. (No modules were targeted for "
                    f"adaptation; {_hint(target, modules)})"
                )
        found = [name for name in modules if any(ends_with(name, target) for target in targets)]
    return _with_attention_outputs(found, modules)


def _check_layers(found: Collection[str], modules: Mapping[str, nn.Module], kinds: Collection[str]) -> None:
    """Checks that all modules that are named are layers that the method covers."""
    for name in found:
        _check_attention(name, modules[name])
        if not is_site(modules[name], kinds):
            try:
                site_for(name, modules[name], kinds)
            except StudioError as error:
                raise Wrong(f"Target module {name} is not supported: {error}") from None


def _check_attention(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention) and not module._qkv_same_embed_dim:
        raise Wrong(
            f"Only same embed for query/key/value is supported as of now for MultiheadAttention ({name!r} has its own "
            f"kdim or vdim); name its output projection '{name}.out_proj' instead, or exclude it"
        )


def _with_attention_outputs(found: Collection[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """A target that is an attention of torch's is the whole attention, its output projection too."""
    wanted = set(found) | {f"{name}.out_proj" for name in found if isinstance(modules[name], nn.MultiheadAttention)}
    return [name for name in modules if name in wanted]


def _all_linear(model: nn.Module, modules: Mapping[str, nn.Module], config: Any) -> list[str]:
    """All layers that are a matrix, without the output embedding and a classifier's head."""
    left = sorted(set(experts_in(model)) - set(_bare_parameters(model, config)))
    if left:
        warnings.warn(
            f"target_modules='all-linear' leaves out {len(left)} parameters that hold experts, {left[0]!r} first, and "
            "their routers; name them in target_parameters to train them too",
            PeftWarning,
            stacklevel=2,
        )
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return [
        name
        for name, module in modules.items()
        if kind_of(module) in ("linear", "conv1d-gpt2")
        and module is not head
        and not (config.task_type == "SEQ_CLS" and name.rpartition(".")[2] in _HEADS)
        and not isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]


def _without(chosen: list[str], modules: Mapping[str, nn.Module], exclude: Any) -> list[str]:
    if exclude is None:
        return chosen
    if isinstance(exclude, str):
        gone = {name for name in modules if matches(f"re:{exclude}", name)}
    else:
        gone = {name for name in modules if any(ends_with(name, ending) for ending in exclude)}
        stray = [ending for ending in sorted(exclude) if not any(ends_with(name, ending) for name in modules)]
        if stray:
            raise NoMatchingPeftModuleError(f"exclude_modules {stray[0]!r} names nothing; {_hint(stray[0], modules)}")
    left = [name for name in chosen if name not in gone]
    if not left:
        raise NoMatchingPeftModuleError("All modules were excluded: exclude_modules names every target")
    return left


def _numbers(expression: str, name: str) -> Iterator[int]:
    """The numbers in a module's name behind what an expression matches, the first one first."""
    words = name.split(".")
    for place, word in enumerate(words[1:-1], 1):
        if word.isdecimal() and matches(expression, ".".join(words[:place])):
            yield int(word)


def _numbered(chosen: list[str], targets: Any, layers: Any, patterns: Any) -> list[str]:
    """Those of the chosen layers that stand in certain numbered blocks."""
    if isinstance(targets, str):
        raise Wrong("layers_to_transform and layers_pattern need a list of target_modules, not 'all-linear'")
    if layers is None:
        raise Wrong("layers_pattern without layers_to_transform does nothing; give both, or neither")
    wanted = {layers} if isinstance(layers, int) else set(layers)
    words = [patterns] if isinstance(patterns, str) else list(patterns or [])
    expressions = [rf"re:(?:.*\.)?{word}" for word in words] or [r"re:.*\.[^.]*"]
    found: dict[str, int] = {}
    for name in chosen:
        number = next((number for expression in expressions for number in _numbers(expression, name)), None)
        if number is not None:
            found[name] = number
    missing = sorted(wanted - set(found.values()))
    if missing:
        have = ", ".join(map(str, sorted(set(found.values())))) or "no numbered layer"
        raise NoMatchingPeftModuleError(
            f"layers_to_transform={missing[0]} not found in the base model; the targets are in layers {have}"
        )
    return [name for name in chosen if found.get(name) in wanted]
