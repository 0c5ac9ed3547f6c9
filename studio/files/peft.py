"""PEFT's adapter folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

Keys are ``base_model.model.<module>.<tensor>``. The scale stands in the config: ``lora_alpha / r``, with
``use_rslora`` ``lora_alpha / sqrt(r)``; ``rank_pattern`` and ``alpha_pattern`` replace r and alpha of the modules that
``(.*\\.)?(<pattern>)$`` matches, the first pattern counting. One folder holds one model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from studio.adapters import Adapter, Site
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.sites.parameter import BARE
from studio.adapters.sites.site import is_attention_output
from studio.errors import DoesNotFit
from studio.families import named_parameters
from studio.files.beside import write_beside
from studio.files.endings import shortest_endings
from studio.files.format import FORMATS, Draft, Format, Source
from studio.files.metadata import COMPONENT
from studio.files.names import Names
from studio.files.peft_parameters import wrapped
from studio.files.peft_settings import PeftSettings
from studio.files.spelling import part_of

__all__ = ["CONFIG_FILE", "PEFT", "TENSOR_FILE", "peft_fields", "warn_doubled"]

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."


def peft_fields(draft: Draft, component: str) -> dict[str, Any]:
    """Makes the fields of PEFT's config that say what ours says.

    Args:
        draft: the adapter. component: the component that the fields are for.

    Raises:
        DoesNotFit: PEFT has no way to say it.
    """
    config, names = draft.config, draft.names
    adapter, settings = config.adapter, config.adapter.peft.settings
    chosen = {path: site for path, site in draft.sites.items() if names.paths[path][0] == component}
    layers = {path: draft.layers[path] for path in chosen}
    sites = {names.paths[path][1]: site for path, site in chosen.items()}
    modules = [
        name for path, (label, name) in names.paths.items() if label == component and name and path not in names.owners
    ]
    bare = {name for name, site in sites.items() if site.kind in BARE}
    fields: dict[str, Any] = {**settings.flags, "peft_type": adapter.peft.type}
    for ours, theirs in settings.fields.items():
        fields[theirs] = getattr(config, ours)
    outer = {_outer(name, site) for name, site in sites.items() if name not in bare}
    fields["target_modules"] = _endings(outer, modules)
    if bare:
        parameters = [name for name, _ in named_parameters(names.modules[component])]
        fields["target_parameters"] = shortest_endings(bare, parameters) or sorted(bare)
    if isinstance(config, RankedConfig):
        fields |= _rank_fields(config, sites)
    if adapter.either is not None:
        second = [names.paths[path][1] for path, tensors in layers.items() if _has_second(adapter, tensors)]
        fields |= _two_sided(adapter.either.setting, second, sites, modules)
    return fields | settings.state(config, chosen, layers)


def _rank_fields(config: RankedConfig, sites: Mapping[str, Site]) -> dict[str, Any]:
    """r, alpha and the patterns for the layers that have others."""
    names = config.adapter.peft.settings.fields
    usual = {"rank": config.rank, "alpha": config.rank if config.alpha is None else config.alpha}
    fields: dict[str, Any] = {names[name]: _whole(value) for name, value in usual.items()}
    values: dict[str, dict[str, float]] = {
        "rank": {module: config.rank_at(module) for module in sites},
        "alpha": {module: config.alpha_at(module) for module in sites},
    }
    for name, table in values.items():
        groups: dict[float, list[str]] = {}
        for module, value in table.items():
            if value != usual[name]:
                groups.setdefault(value, []).append(module)
        fields[f"{name}_pattern"] = {
            pattern: _whole(value)
            for value, modules in sorted(groups.items())
            for pattern in shortest_endings(modules, sites) or [f"^{re.escape(module)}" for module in modules]
        }
    return fields


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)


def _outer(name: str, site: Site) -> str:
    """PEFT adapts an attention as a whole: its output projection is named by the attention."""
    return name.removesuffix(".out_proj") if is_attention_output(site.module) else name


def _endings(chosen: Iterable[str], among: Iterable[str]) -> list[str] | str:
    """Names exactly the chosen modules in PEFT's way: by endings, or by one expression."""
    wanted = list(chosen)
    endings = shortest_endings(wanted, among)
    return endings if endings is not None else _expression(wanted)


def _two_sided(
    setting: str, second: Collection[str], sites: Collection[str], modules: Collection[str]
) -> dict[str, Any]:
    """Names the adapted modules and, among them, those with the second tensor.

    PEFT wants the second list to be part of the first, and compares its names as text: "head" also names "lm_head".
    Where that cannot be had, expressions do.
    """
    first = [name for name in sites if name not in second]
    endings = [shortest_endings(chosen, modules) for chosen in (first, second)]
    clear = endings[0] is not None and endings[1] is not None
    if clear and not any(name.endswith(ending) for ending in endings[1] or () for name in first):
        return {"target_modules": sorted({*(endings[0] or ()), *(endings[1] or ())}), setting: endings[1]}
    return {"target_modules": _expression(sites), setting: _expression(second)}


def _expression(names: Iterable[str]) -> str:
    return f"({'|'.join(map(re.escape, sorted(names)))})"


def _has_second(adapter: type[Adapter], tensors: Mapping[str, Tensor]) -> bool:
    return list(adapter.peft.tensors).index(next(iter(tensors))) == 1


# -- the format ------------------------------------------------------------------------------------------------------


def _split(key: str) -> tuple[str, str] | None:
    return part_of(key.removeprefix(_PREFIX))


def _find(names: Names, module: str) -> str | None:
    inside = names.find_dotted(f"{names.inside}.{module}") if names.inside in names.modules else None
    found = inside or names.also.get(module) or names.find_dotted(module)
    if found is None and "base_layer.out_proj" in module:
        return names.find_dotted(module.replace("base_layer.out_proj", "out_proj"))
    return found


def _spell(names: Names, path: str) -> str:
    name = names.paths[path][1]
    if path in names.owners:
        return f"{_PREFIX}{wrapped(names, path)}"
    if is_attention_output(names.module(path)):
        name = name.removesuffix("out_proj") + "base_layer.out_proj"
    return f"{_PREFIX}{name}"


def _root(names: Names, path: str) -> str:
    return "base_model"


def _settings(source: Source, method: str, components: tuple[str, ...]) -> PeftSettings | None:
    return None if source.peft is None else PeftSettings(source.peft, method, CONFIG_FILE)


def _check(draft: Draft) -> None:
    if not draft.config.adapter.peft.type:
        raise DoesNotFit(f"PEFT has no {type(draft.config).__name__}; save with format='diffusers'")
    labels = sorted({draft.names.paths[path][0] for path in draft.sites})
    if len(labels) > 1:
        raise DoesNotFit(
            f"a PEFT folder holds one model, and this adapter is on {' and '.join(labels)}; save it with "
            "format='diffusers', or attach one adapter to each component"
        )
    for path, site in draft.sites.items():
        reason = _refusal(draft, path, site)
        if reason:
            raise DoesNotFit(reason)


def _refusal(draft: Draft, path: str, site: Site) -> str:
    """Why PEFT cannot have this layer, or ""."""
    name = draft.names.paths[path][1]
    if site.kind in BARE and not draft.config.adapter.peft.parameters:
        return f"PEFT adapts parameters with LoRA alone, and {path} is one; save with format='diffusers'"
    if site.kind in BARE and (len(site.weight_shape) == 1 or "." not in name):
        return (
            f"PEFT adapts parameters with two or three axes that a module below the model keeps, and {path} has "
            f"the shape {site.weight_shape}; save with format='diffusers'"
        )
    if site.kind == "embedding" and "bias" in draft.layers[path]:
        return f"PEFT has no bias for the embedding {path}; save with format='diffusers'"
    if name == "":
        return "PEFT cannot adapt a model that is one single layer; save with format='diffusers'"
    return ""


def warn_doubled(draft: Draft) -> None:
    """Warns where PEFT would let an adapter act more strongly than it does here.

    Args:
        draft: the adapter that is written.
    """
    for path, tensors in draft.layers.items():
        if is_attention_output(draft.sites[path].module) and "up" in tensors and bool(tensors["up"].any()):
            warnings.warn(
                f"PEFT 0.21 adds the change of {path} twice unless it is merged, so there it is stronger than here",
                stacklevel=2,
            )


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    warn_doubled(draft)
    component = draft.names.paths[next(iter(draft.sites))][0]
    if component:
        metadata[COMPONENT] = component
    fields = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "revision": None,
        "task_type": None,
        **peft_fields(draft, component),
    }
    peft = draft.config.adapter.peft
    if peft.turns:
        fields["fan_in_fan_out"] = any(site.kind == "conv1d-gpt2" for site in draft.sites.values())
    for name in peft.without:  # PEFT warns of fields that its config does not have
        del fields[name]
    write_beside(file, (CONFIG_FILE, fields), (TENSOR_FILE, tensors), metadata)


PEFT: Final = FORMATS.add(
    "peft",
    Format(
        name="peft",
        title="PEFT folder",
        dialect="peft",
        folder=True,
        owns=lambda key: key.startswith(_PREFIX),
        split=_split,
        find=_find,
        spell=_spell,
        settings=_settings,
        write=_write,
        check=_check,
        peft=True,
        root=_root,
    ),
)
