"""Detecting what a file holds, key by key, and for which family it was made."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from studio.families import FAMILIES
from studio.families.native import Clues
from studio.files import diffusers, gguf, kohya, mlx, native, peft
from studio.files.cloneofsimo import numbered
from studio.files.format import Format
from studio.files.header import TensorInfo
from studio.files.respelled import respelled
from studio.files.spelling import WHOLE, Spelling, nearest_part, recognise, shared_parts, with_axes

__all__ = ["Contents", "Layer", "guess_family", "sort_keys"]

_ORDER: Final = (peft.PEFT, gguf.GGUF, mlx.MLX, kohya.KOHYA, native.NATIVE, diffusers.DIFFUSERS)
"""Formats as they are asked whose a key is; the last takes what is left."""

_STRANGERS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(expression), what)
    for expression, what in (
        (r"lora_controlnet", "a Control-LoRA, which replaces a ControlNet"),
        (r"^lllite_", "a ControlNet-LLLite"),
        (r"^(ip_adapter|image_proj)\.", "an IP-Adapter"),
        (r"^bundle_emb\.", "a text embedding that is bundled with the file"),
        (r"^(emb_params|clip_l|clip_g|t5xxl|string_to_param)$", "a text embedding (textual inversion)"),
        (r"_custom_diffusion\.weight$", "Custom Diffusion"),
        (r"^prompt_embeddings$", "virtual tokens of a PEFT method that only its adapter_config.json names"),
        (r"^\w+:\d+:\w+$", "cloneofsimo's format, in a form that is not known"),
        (r"\.(query|key)_norm\.scale$", "a Flux control LoRA"),
        (r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.", "a whole checkpoint"),
    )
)


@dataclass
class Layer:
    """The keys of one layer.

    Attributes:
        format: whose naming it is. module: its name in the file. parts: part -> key.
        spoiled: why nothing of it can be used, or "". preferred: the method that the file says it is of, or "".
    """

    format: Format
    module: str
    parts: dict[str, str] = field(default_factory=dict)
    spoiled: str = ""
    preferred: str = ""

    def spelling(self) -> Spelling | str:
        """The method of this layer, or why there is none."""
        return self.spoiled or recognise(self.parts, self.preferred)


@dataclass
class Contents:
    """A file's keys, sorted into layers.

    Attributes:
        layers: by module name as the file has it. strangers: key -> why it belongs to no layer.
        shared: component as the file has it -> part -> key, of tensors that all layers share.
        hints: how many keys were asked for what they could have been called.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, dict[str, str]] = field(default_factory=dict)
    hints: int = 0

    def method(self, preferred: str = "") -> str:
        """The method of most layers, the preferred one if any layer has it; "" if no layer has one."""
        spellings = [layer.spelling() for layer in self.layers.values()]
        found = Counter(spelling.method for spelling in spellings if isinstance(spelling, Spelling))
        if preferred in found:
            return preferred
        return min(found, key=lambda method: (-found[method], method)) if found else ""

    def methods(self, preferred: str = "") -> tuple[str, ...]:
        """The methods of its layers, that of most of them, or the preferred one, first.

        Args:
            preferred: the method that counts for layers that could be of several, or several ("lora+full").
        """
        first = self.method(preferred.partition("+")[0])
        spellings = [layer.spelling() for layer in self.layers.values()]
        found = {spelling.method for spelling in spellings if isinstance(spelling, Spelling)}
        return (first, *sorted(found - {first})) if first else ()

    def only(self, method: str) -> Contents:
        """The layers of one method, and nothing else."""
        mine = {
            module: layer
            for module, layer in self.layers.items()
            if isinstance(spelling := layer.spelling(), Spelling) and spelling.method == method
        }
        return Contents(mine)

    def without(self, methods: Collection[str]) -> Contents:
        """All but the layers of these methods."""
        rest = {
            module: layer
            for module, layer in self.layers.items()
            if not isinstance(spelling := layer.spelling(), Spelling) or spelling.method not in methods
        }
        return dataclasses.replace(self, layers=rest)

    def format(self) -> str:
        """The format of most layers; "" if there is none."""
        found = Counter(layer.format.name for layer in self.layers.values())
        return min(found, key=lambda name: (-found[name], name)) if found else ""


def sort_keys(keys: Mapping[str, TensorInfo], preferred: str = "") -> Contents:
    """Sorts the keys of a file into layers; every key ends in a layer or among the strangers.

    Args:
        keys: of the file. preferred: the method that it says it is of, where it says so.
    """
    found = Contents()
    unknown: list[tuple[str, Format]] = []
    placed, found.strangers = numbered(keys)
    said = {**respelled(keys), **placed}
    for key in [key for key in keys if key not in found.strangers]:
        root, _, last = said[key].rpartition(".")
        if last in shared_parts():
            found.shared.setdefault("" if root == "base_model" else root, {})[last] = key
            continue
        format = next(one for one in _ORDER if one.owns(said[key]))
        split = format.split(said[key])
        if split is None:
            unknown.append((key, format))
        else:
            new = Layer(format, split[0], preferred=preferred)
            _place(key, with_axes(split[1], len(keys[key].shape)), new, found)
    for module in [module for module, layer in found.layers.items() if WHOLE.issuperset(layer.parts)]:
        if module.rpartition(".")[0] in found.layers:  # "to_q.lora_a.weight" is no weight of a layer "to_q.lora_a"
            layer = found.layers.pop(module)
            unknown += [(key, layer.format) for key in layer.parts.values()]
    for key, format in unknown:
        _place_unknown(key, format, found)
    return found


def _place(key: str, part: str, new: Layer, found: Contents) -> None:
    """Gives a key to its layer, unless it is of something that has whole tensors of its own."""
    if part in WHOLE and _stranger(key):
        found.strangers[key] = _stranger(key)
        return
    layer = found.layers.setdefault(new.module, new)
    if layer.format is not new.format:
        layer.spoiled = f"one part of it is named as in a {layer.format.title}, and {key} as in a {new.format.title}"
        found.strangers[key] = layer.spoiled
    elif part in layer.parts:
        layer.spoiled = f"{part} of this layer is in the file twice, as {layer.parts[part]} and {key}"
        found.strangers[key] = layer.spoiled
    else:
        layer.parts[part] = key


def _stranger(key: str) -> str:
    """Why a key belongs to no layer, where it is of something else that is known; else ""."""
    what = next((what for expression, what in _STRANGERS if expression.search(key)), "")
    return what and f"it belongs to {what}, which is not read here"


def _place_unknown(key: str, format: Format, found: Contents) -> None:
    """Notes a key whose end is unknown; a layer that it belongs to cannot be used without it."""
    found.strangers[key] = _stranger(key)
    if found.strangers[key]:
        return
    found.hints += 1
    close = f"; the nearest is {nearest_part(key)!r}" if found.hints <= _HINTS else ""
    found.strangers[key] = f"no tensor of a known method is named so{close}"
    module = key
    while "." in module:
        module = module.rpartition(".")[0]
        layer = found.layers.get(module) or found.layers.get(module.removeprefix("base_model.model."))
        if layer is not None:
            layer.spoiled = f"its layer also has {key}, which is unknown"
            return


# -- the family a file was made for ------------------------------------------------------------------------------------

_ELSEWHERE: Final[tuple[tuple[re.Pattern[str], str, str], ...]] = (
    (re.compile(r"(^|_)blocks_\d+_(self|cross)_attn"), "wan", "Wan video"),
    (re.compile(r"double_blocks_\d+_(img|txt)_(mlp_fc\d|mod_linear)"), "hunyuan-video", "HunyuanVideo"),
    (re.compile(r"^blk_\d+_(attn|ffn)_|(^|_)h_\d+_(attn|mlp)_c_(attn|proj|fc)$"), "llm", "a language model"),
    (re.compile(r"(^|_)layers_\d+_(self_attn|mlp)_(q|k|v|o|gate|up|down)_proj$"), "llm", "a language model"),
)
"""Names of what no family here is; the last ones are those of text encoders too."""
_TEXT: Final = re.compile("text_model|text_encoder|^lora_te")
_HINTS: Final = 10  # each compares a key with all known ones, and a file for another program has thousands
_DOWNS: Final = ("lora_A.weight", "lora_down.weight", "hada_w1_b")
_UPS: Final = ("lora_B.weight", "lora_up.weight", "hada_w1_a")


def guess_family(found: Contents, infos: Mapping[str, TensorInfo], stated: Iterable[str] = ()) -> tuple[str, str]:
    """Guesses for which family a file was made, by the families' marks.

    Args:
        found: the file's keys. infos: what the header says about them.
        stated: registry names of families that it says it is for; the first counts that its layers do not deny.

    Returns:
        Its registry name and its title; ``("", "")`` when nothing tells.
    """
    names = {module.replace(".", "_"): layer for module, layer in found.layers.items()}
    for expression, name, title in _ELSEWHERE:
        if any(expression.search(one) for one in names if name != "llm" or not _TEXT.search(one)):
            return name, title
    clues = Clues({one: (_size(layer, infos, _DOWNS, 1), _size(layer, infos, _UPS, 0)) for one, layer in names.items()})
    told = next((row for row in FAMILIES.values() if row.marks(clues)), None)
    likely = (FAMILIES[name] for name in stated if name in FAMILIES)
    family = next((row for row in likely if told is None or told.name in row.alike or row.marks(clues)), told)
    return ("", "") if family is None else (family.name, family.title)


def _size(layer: Layer, infos: Mapping[str, TensorInfo], parts: tuple[str, ...], axis: int) -> int:
    """How many inputs or outputs a layer has, as far as the usual pair tells; 0 where it does not."""
    key = next((layer.parts[part] for part in parts if part in layer.parts), None)
    shape = () if key is None else infos[key].shape
    return shape[axis] if len(shape) > 1 else 0
