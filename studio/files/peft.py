"""PEFT's adapter folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

Keys are ``base_model.model.<module>.<tensor>``. The scale stands in the config: ``lora_alpha / r``, with
``use_rslora`` ``lora_alpha / sqrt(r)``; ``rank_pattern`` and ``alpha_pattern`` replace r and alpha of the modules that
``(.*\\.)?(<pattern>)$`` matches, the first pattern counting. One folder holds one model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from studio.adapters import METHODS, Site
from studio.adapters.ranked import RankedConfig
from studio.atomic import atomic_folder, atomic_path
from studio.errors import BadFile, DoesNotFit
from studio.files.format import FORMATS, Format, Saved, Source
from studio.files.header import write_tensors
from studio.files.names import Names, shortest_endings
from studio.files.scale import Seen, root_or_rank
from studio.files.spelling import part_of

__all__ = ["CONFIG_FILE", "TENSOR_FILE", "PeftSettings", "peft_fields"]

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."

# Fields with which PEFT computes something else than the tensors say by themselves, and what they may be.
_CHANGES_FUNCTION: Final[Mapping[str, tuple[Any, ...]]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
}


class PeftSettings:
    """The fields of a PEFT config as far as they matter to the function.

    Args:
        fields: the config. method: our method.

    Raises:
        BadFile: a field has an impossible value. DoesNotFit: the config asks for something that the studio does not do.
    """

    def __init__(self, fields: Mapping[str, Any], method: str, where: str) -> None:
        self.notes: list[str] = []
        self._fields, self._foreign = fields, METHODS[method].adapter.foreign
        for name, allowed in _CHANGES_FUNCTION.items():
            if name in fields and fields[name] not in allowed:
                raise DoesNotFit(
                    f"{where} says {name}={fields[name]!r}, with which PEFT computes something that its tensors alone do "
                    "not say; convert the adapter in PEFT to a plain one first"
                )
        names = self._foreign.peft_fields
        try:
            self._rank = int(fields.get(names.get("rank", ""), 8))
            self._alpha = float(fields.get(names.get("alpha", ""), 8))
            self._stabilized = bool(fields.get(names.get("rank_stabilized", ""), False))
            self._alphas = _Patterns(fields.get("alpha_pattern") or {})
            self._ranks = _Patterns(fields.get("rank_pattern") or {})
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise BadFile(f"{where} cannot be read as a PEFT config: {error}") from None

    def seen(self, module: str, rank: int | None) -> Seen:
        """Returns the rank and the scale that the config states for ``module``, whose tensors have rank ``rank``."""
        stated = int(self._ranks.first(module, self._rank))
        rank = stated if rank is None else rank  # the tensor is what multiplies
        if "alpha" not in self._foreign.peft_fields:
            return Seen(None, None)
        return Seen(rank, self._alphas.first(module, self._alpha) / root_or_rank(rank, self._stabilized))

    def fields(self) -> dict[str, Any]:
        """Returns the fields for the method's own config, and notes the patterns that match no layer of the file."""
        for table, patterns in (("alpha_pattern", self._alphas), ("rank_pattern", self._ranks)):
            self.notes += [f"{table} {pattern!r} matches no layer of the file" for pattern in patterns.unused()]
        return {
            ours: self._fields[theirs]
            for ours, theirs in self._foreign.peft_fields.items()
            if self._fields.get(theirs) is not None and ours not in ("rank", "alpha")
        }

    def second(self, module: str) -> bool | None:
        """Whether the tensors of ``module`` scale its input; None where the config does not say."""
        stated = self._fields.get("feedforward_modules")
        if stated is None or self._foreign.inputs is None:
            return None
        if isinstance(stated, str):
            return re.fullmatch(stated, module) is not None
        return any(module.endswith(name) for name in stated)  # PEFT compares without a dot


class _Patterns:
    """A table of PEFT's patterns; the first that matches counts."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._values = {pattern: float(value) for pattern, value in table.items()}
        self._plain = {pattern.removeprefix("^"): pattern for pattern in table if re.fullmatch(r"\^?[\w.]+", pattern)}
        self._regular = [
            (pattern, re.compile(rf"(.*\.)?({pattern})$")) for pattern in table if pattern not in self._plain.values()
        ]
        self._place = {pattern: place for place, pattern in enumerate(table)}
        self._used: set[str] = set()

    def first(self, module: str, default: float) -> float:
        if not self._values:
            return default
        hits = [pattern for pattern, expression in self._regular if expression.match(module)]
        # plain names, of which there can be one per layer, are looked up; a dot in them is taken for a dot
        ending = module
        while ending:
            pattern = self._plain.get(ending)
            if pattern is not None and (pattern[0] != "^" or ending == module):
                hits.append(pattern)
            ending = ending.partition(".")[2]
        if not hits:
            return default
        chosen = min(hits, key=self._place.__getitem__)
        self._used.add(chosen)
        return self._values[chosen]

    def unused(self) -> list[str]:
        return [pattern for pattern in self._values if pattern not in self._used]


def peft_fields(saved: Saved, component: str) -> dict[str, Any]:
    """Makes the fields of PEFT's config that say what ours says.

    Args:
        saved: the adapter. component: the component that the fields are for.

    Raises:
        DoesNotFit: PEFT has no way to say it.
    """
    config, names = saved.config, saved.names
    foreign = config.adapter.foreign
    sites = {names.paths[path][1]: site for path, site in saved.sites.items() if names.paths[path][0] == component}
    modules = [name for label, name in names.paths.values() if label == component and name]
    fields: dict[str, Any] = {**foreign.peft_flags, "peft_type": foreign.peft_type}
    for ours, theirs in foreign.peft_fields.items():
        fields[theirs] = getattr(config, ours)
    fields["target_modules"] = _endings({_outer(name, site) for name, site in sites.items()}, modules)
    if isinstance(config, RankedConfig):
        fields |= _rank_fields(config, sites)
    if foreign.inputs is not None:
        second = [
            names.paths[path][1]
            for path, tensors in saved.layers.items()
            if names.paths[path][0] == component and _is_second(foreign.peft_tensors, tensors)
        ]
        fields |= _two_sided(second, sites, modules)
    if foreign.peft_type == "LOKR":
        fields["decompose_factor"] = _decompose_factor(saved)
    return fields


def _rank_fields(config: RankedConfig, sites: Mapping[str, Site]) -> dict[str, Any]:
    """r, alpha and the patterns for the layers that have others."""
    foreign = config.adapter.foreign
    usual = {"rank": config.rank, "alpha": config.rank if config.alpha is None else config.alpha}
    fields: dict[str, Any] = {foreign.peft_fields[name]: _whole(value) for name, value in usual.items()}
    values = {"rank": {n: config.rank_at(n) for n in sites}, "alpha": {n: config.alpha_at(n) for n in sites}}
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
    return name.removesuffix(".out_proj") if _is_attention_output(site) else name


def _is_attention_output(site: Site) -> bool:
    return isinstance(site.module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _endings(chosen: Iterable[str], among: Iterable[str]) -> list[str] | str:
    """Names exactly the chosen modules in PEFT's way: by endings, or by one expression."""
    wanted = list(chosen)
    endings = shortest_endings(wanted, among)
    return endings if endings is not None else _expression(wanted)


def _two_sided(second: Collection[str], sites: Collection[str], modules: Collection[str]) -> dict[str, Any]:
    """Names the adapted modules and, among them, those with the second tensor.

    PEFT wants the second list to be part of the first, and compares its names as text: "head" also names "lm_head".
    Where that cannot be had, expressions do.
    """
    first = [name for name in sites if name not in second]
    endings = [shortest_endings(chosen, modules) for chosen in (first, second)]
    clear = endings[0] is not None and endings[1] is not None
    if clear and not any(name.endswith(ending) for ending in endings[1] or () for name in first):
        return {"target_modules": sorted({*(endings[0] or ()), *(endings[1] or ())}), "feedforward_modules": endings[1]}
    return {"target_modules": _expression(sites), "feedforward_modules": _expression(second)}


def _expression(names: Iterable[str]) -> str:
    return f"({'|'.join(map(re.escape, sorted(names)))})"


def _is_second(table: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    return list(table).index(next(iter(tensors))) == 1


# -- LoKr: PEFT makes the tensors from its config before it reads them, so the config must lead to the same shapes ------


def _decompose_factor(saved: Saved) -> int:
    config: Any = saved.config
    rows = {path: _rows_of_w1(tensors) for path, tensors in saved.layers.items()}
    small = {min(saved.sites[path].rows // count, count) for path, count in rows.items()}
    wrong = ""
    for factor in (config.factor, -1, *sorted(small)):
        wrong = next(
            (
                path
                for path, tensors in saved.layers.items()
                if _peft_shapes(config, saved.sites[path], factor)
                != {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            ),
            "",
        )
        if not wrong:
            return int(factor)
    raise DoesNotFit(
        f"PEFT would give the LoKr tensors of {wrong} other shapes than they have and then refuse the file; "
        "save with format='diffusers' or 'kohya'"
    )


def _rows_of_w1(tensors: Mapping[str, Tensor]) -> int:
    return int(tensors["w1" if "w1" in tensors else "w1_a"].shape[0])


def _peft_shapes(config: Any, site: Site, factor: int) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT makes at a site."""
    kernel, rank = site.inner_shape[1:], config.rank_at(site.path)
    (a, c), (b, d) = _peft_split(site.rows, factor), _peft_split(site.inner_shape[0], factor)
    shapes: dict[str, tuple[int, ...]] = {"w1": (a, b)}
    if config.decompose_both and rank < max(a, b) / 2:
        shapes = {"w1_a": (a, rank), "w1_b": (rank, b)}
    if rank < max(c, d) / 2:
        return shapes | {"w2_a": (c, rank), "w2_b": (rank, d * math.prod(kernel))}
    return shapes | {"w2": (c, d, *kernel)}


def _peft_split(size: int, factor: int) -> tuple[int, int]:
    """Splits a size as PEFT does: a factor that divides it comes first, even if it is the larger part."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    small = next(part for part in range(most, 0, -1) if size % part == 0)
    return small, size // small


# -- the format ------------------------------------------------------------------------------------------------------


def _split(key: str) -> tuple[str, str] | None:
    return part_of(key.removeprefix(_PREFIX))


def _find(names: Names, module: str) -> str | None:
    found = names.find_dotted(module)
    if found is None and "base_layer.out_proj" in module:
        return names.find_dotted(module.replace("base_layer.out_proj", "out_proj"))
    return found


def _spell(names: Names, path: str) -> str:
    name = names.paths[path][1]
    if _is_attention_output(names.site(path)):
        name = name.removesuffix("out_proj") + "base_layer.out_proj"
    return f"{_PREFIX}{name}"


def _settings(source: Source, method: str, component: str) -> PeftSettings | None:
    return None if source.peft is None else PeftSettings(source.peft, method, CONFIG_FILE)


def _check(saved: Saved) -> None:
    labels = sorted({saved.names.paths[path][0] for path in saved.sites})
    if len(labels) > 1:
        raise DoesNotFit(
            f"a PEFT folder holds one model, and this adapter is on {' and '.join(labels)}; save it with "
            "format='diffusers', or attach one adapter to each component"
        )
    for path, site in saved.sites.items():
        if getattr(site.module, "groups", 1) != 1:
            raise DoesNotFit(
                f"PEFT computes something else for the grouped convolution {path}; save with format='diffusers' or 'kohya'"
            )
        if site.kind == "embedding" and "bias" in saved.layers[path]:
            raise DoesNotFit(f"PEFT has no bias for the embedding {path}; save with format='diffusers'")
        if saved.names.paths[path][1] == "":
            raise DoesNotFit("PEFT cannot adapt a model that is one single layer; save with format='diffusers'")


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], saved: Saved) -> None:
    fields = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "revision": None,
        "task_type": None,
        **peft_fields(saved, saved.names.paths[next(iter(saved.sites))][0]),
    }
    if fields["peft_type"] in ("LORA", "IA3"):
        fields["fan_in_fan_out"] = any(site.kind == "conv1d-gpt2" for site in saved.sites.values())
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    if file.exists():  # beside other files of the user's
        with atomic_path(file / CONFIG_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
            write_tensors(file / TENSOR_FILE, tensors, metadata)
    else:
        with atomic_folder(file) as folder:
            (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
            write_tensors(folder / TENSOR_FILE, tensors, metadata)


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
    ),
)
