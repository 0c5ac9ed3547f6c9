"""Block weights as other tools write them, turned into patterns of layers: lists and presets of lora-block-weight, and
the tables of diffusers.

A block is called by its number in the base's native code: ``IN04``, ``M00``, ``OUT05`` in a U-Net, ``D07`` and ``S12``
in Flux's double and single stream, ``J03`` in SD3, ``B09`` in transformers with one kind of block. ``BASE`` is the text
encoders. A list has one number per block, in this order; the short lists of LoRA files leave out the blocks that such
files have nothing in, which are then 0, as in lora-block-weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from studio.adapters.contract.pattern import exactly, matches
from studio.adapters.targets.block_lists import BLOCK_PRESETS, LISTS, PART_PRESETS, UNET
from studio.config import finite, own_number
from studio.errors import BadConfig, nearest
from studio.families import Family

__all__ = ["BLOCK_PRESETS", "PART_PRESETS", "Blocks"]

_KINDS: Final = (
    (re.compile(r"input_blocks\.(\d+)\."), "IN"),
    (re.compile(r"output_blocks\.(\d+)\."), "OUT"),
    (re.compile(r"middle_block\.()"), "M"),
    (re.compile(r"double_blocks\.(\d+)\."), "D"),
    (re.compile(r"single_(?:transformer_)?blocks\.(\d+)\."), "S"),
    (re.compile(r"joint_blocks\.(\d+)\."), "J"),
    (re.compile(r"(?:transformer_blocks|layers|blocks)\.(\d+)\."), "B"),
)
_ORDER: Final = ("BASE", "CLIP", "T5", "IN", "D", "S", "J", "B", "M", "OUT")
_UNIT: Final = re.compile(r"(?:down|up)_blocks\.\d+\.\w+\.\d+|mid_block|\w*(?:blocks|layers)\.\d+")
_SPAN: Final = re.compile(r"([A-Z]+\d*)(?:-([A-Z]+\d+))?")
_SLICE: Final = re.compile(r"(.+)\[(\d+):(\d+)\]")


class Blocks:
    """The layers of one adapter, by the blocks that other tools know.

    Args:
        layers: component -> paths of the layers that the adapter changes; ``""`` for a denoiser by itself.
        modules: paths of all layers of the denoiser.
        family: what the base is; None: unknown, and then only tables of patterns can be read.
    """

    def __init__(self, layers: Mapping[str, Collection[str]], modules: Collection[str], family: Family | None) -> None:
        self.layers, self.modules, self.family = layers, list(modules), family
        self.denoiser = "" if family is None or "" in layers else family.denoiser
        names = {} if family is None or family.names is None else self._native(family)
        self.blocks = {path: _block(f"{names.get(path, path)}.") for path in self.modules}

    def _native(self, family: Family) -> dict[str, str]:
        assert family.names is not None, "asked before"
        return {path: native.name for native in family.names(self.modules) for path in native.paths}

    @property
    def known(self) -> list[str]:
        """The blocks of this base, in order."""
        readers = {self._readers().index(name) for name in self.layers if name in self._readers()}
        encoders = ["BASE", *(name for index, name in enumerate(("CLIP", "T5")) if index in readers)]
        found = {block for block in self.blocks.values() if block}
        return encoders + sorted(found, key=lambda block: (_ORDER.index(block.rstrip("0123456789")), block))

    def _readers(self) -> tuple[str, ...]:
        return () if self.family is None else self.family.readers

    def weights(self, said: str | Sequence[float] | Mapping[str, Any]) -> dict[str, float]:
        """Returns pattern -> number of what was said; layers that it does not name keep 1.

        Args:
            said: a preset, a list (numbers, or their text with commas), blocks and globs with their numbers
                (``"IN04=0.5,OUT03-OUT05=0,*.attn2.*=0"``), or diffusers' table.

        Raises:
            BadConfig: a block or preset that is not there, a list of another length, a glob that matches nothing, or
                what is no finite number.
        """
        if isinstance(said, Mapping):
            blocks = all(isinstance(key, str) and _SPAN.fullmatch(key) for key in said)
            return self._of_blocks(said) if blocks else self._of_table(said)
        if isinstance(said, str):
            said = said.strip()
            if said in BLOCK_PRESETS:
                return self._of_list(BLOCK_PRESETS[said])
            if said in PART_PRESETS:
                return self._of_part(said, PART_PRESETS[said])
            if "=" in said:
                pairs = [part.partition("=") for part in said.split(",")]
                return self._of_blocks({key.strip(): number for key, _, number in pairs})
            if "," not in said:
                known = (*BLOCK_PRESETS, *PART_PRESETS)
                close = nearest(said, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise BadConfig(f"there are no block weights called {said!r}; {hint}")
            said = [part.strip() for part in said.split(",")]  # type: ignore[misc]
        return self._of_list(said)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def _of_list(self, numbers: Sequence[Any]) -> dict[str, float]:
        ids = LISTS.get(len(numbers))
        own = [block for block in self.known if block not in ("CLIP", "T5")]
        if ids is None and len(numbers) == len(own):
            ids = own
        if ids is None:
            lengths = ", ".join(map(str, sorted({*LISTS, len(own)})))
            raise BadConfig(f"a list of block weights has {len(numbers)} numbers; lists of {lengths} are known here")
        given = dict(zip(ids, map(_number, numbers), strict=True))
        absent = {block: 0.0 for block in UNET if ids[0] == "BASE" and ids is not own and block not in given}
        return self._patterns(given | absent)

    def _of_blocks(self, said: Mapping[str, Any]) -> dict[str, float]:
        given: dict[str, float] = {}
        globs = {key: _number(number) for key, number in said.items() if set(key) & set("*?.")}
        for glob in globs:
            if not self._acts(glob):
                raise BadConfig(f"block weights name {glob!r}, which no layer of the adapter matches")
        for key, number in said.items():
            if key in globs:
                continue
            found = _SPAN.fullmatch(key)
            first, last = (found[1], found[2] or found[1]) if found else (key, key)
            for end in (first, last):
                if end not in self.known:
                    raise BadConfig(f"there is no block {end!r} here; there are {_shortened(self.known)}")
            begin, stop = self.known.index(first), self.known.index(last)
            given |= dict.fromkeys(self.known[begin : stop + 1], _number(number))
        return self._patterns(given) | globs

    def _of_part(self, said: str, part: str) -> dict[str, float]:
        """0 at all of the adapter's layers that are not in one part of the denoiser."""
        inside = {path for path in self.layers.get(self.denoiser, ()) if path.startswith(f"{part}.")}
        if not inside:
            raise BadConfig(
                f"block weights {said!r} leave an adapter in {part} alone, and this one has no layer there: it is a "
                "part of SDXL's denoiser"
            )
        found = {f"{component}.*": 0.0 for component in self.layers if component != self.denoiser}
        outside = (path for path in self.layers[self.denoiser] if path not in inside)
        return found | {self._around(self.denoiser, path): 0.0 for path in outside}

    def _patterns(self, given: Mapping[str, float]) -> dict[str, float]:
        """Pattern -> number for the adapter's layers in these blocks."""
        found: dict[str, float] = {}
        for component, paths in self.layers.items():
            if component in self._readers():
                index = self._readers().index(component)
                number = given.get("BASE", given.get(("CLIP", "T5", "T5")[index], 1.0))
                found |= {f"{component}.*": number}
                continue
            for path in paths:
                block = self.blocks.get(path)
                if block is not None and block in given:
                    found[self._around(component, path)] = given[block]
        return {pattern: number for pattern, number in found.items() if number != 1}

    def _around(self, component: str, path: str) -> str:
        """The pattern of the part of a block that a layer is in, or of the layer alone where it is in none."""
        unit, lead = _UNIT.match(path), f"{component}." if component else ""
        return f"{lead}{unit[0]}.*" if unit else exactly([lead + path])

    # -- tables --------------------------------------------------------------------------------------------------------

    def _of_table(self, said: Mapping[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for component, part in said.items():
            if component not in (self.layers if "" not in self.layers else {"": ()}):
                known = ", ".join(filter(None, self.layers)) or "a model by itself"
                raise BadConfig(f"block weights name the component {component!r}; the adapter is on {known}")
            if not isinstance(part, Mapping):
                found[f"{component}.*".lstrip(".")] = _number(part)
                continue
            for key, value in part.items():
                if key in ("down", "mid", "up"):
                    found |= self._of_side(component, key, value)
                else:
                    found |= self._of_pattern(component, key, value)
        return {one: number for one, number in found.items() if self._acts(one)}

    def _acts(self, pattern: str) -> bool:
        own = (f"{component}.{path}".lstrip(".") for component, paths in self.layers.items() for path in paths)
        return any(matches(pattern, path) for path in own)

    def _of_side(self, component: str, side: str, value: Any) -> dict[str, float]:
        """``"down": s | {"block_1": s | [s0, s1]}``, ``"mid": s | [s]``."""
        place = f"{component}.".lstrip(".") + ("mid_block" if side == "mid" else f"{side}_blocks")
        if side == "mid":
            return {f"{place}.*": _number(value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value)}
        if not isinstance(value, Mapping):
            return {f"{place}.*": _number(value)}
        found: dict[str, float] = {}
        for key, numbers in value.items():
            index = str(key).removeprefix("block_")
            counts = [_count(self.modules, f"{side}_blocks.{index}.{kind}") for kind in ("attentions", "resnets")]
            if not any(counts):
                raise BadConfig(f"block weights name {side}: {key!r}, and the base has no {side}_blocks.{index}")
            if not isinstance(numbers, (list, tuple)):
                found[f"{place}.{index}.*"] = _number(numbers)
                continue
            if len(numbers) not in counts:
                raise BadConfig(f"block weights give {side}: {key!r} {len(numbers)} numbers; it has {max(counts)}")
            for layer, number in enumerate(numbers):
                kinds = "(?:attentions|resnets|downsamplers|upsamplers)"
                found[f"re:{re.escape(f'{place}.{index}')}\\.{kinds}\\.{layer}\\..*"] = _number(number)
        return found

    def _of_pattern(self, component: str, key: str, value: Any) -> dict[str, float]:
        """A glob and its number, or ``"transformer_blocks[0:3]": [s0, s1, s2]``."""
        sliced = _SLICE.fullmatch(key)
        table = {key: value}
        if sliced is not None:
            first, last = int(sliced[2]), int(sliced[3])
            numbers = value if isinstance(value, (list, tuple)) else [value] * (last - first)
            if len(numbers) != last - first:
                raise BadConfig(f"block weights give {key!r} {len(numbers)} numbers for {last - first} blocks")
            table = {f"{sliced[1]}.{first + n}.*": number for n, number in enumerate(numbers)}
        found = {}
        for pattern, number in table.items():
            if not any(matches(pattern, path) for path in self.modules):
                raise BadConfig(f"block weights name {pattern!r}, which no layer matches; blocks: {self._shown()}")
            found[f"{component}.{pattern}".lstrip(".")] = _number(number)
        return found

    def _shown(self) -> str:
        units = {unit[0] for unit in map(_UNIT.match, self.modules) if unit}
        return _shortened(sorted(units))


def _block(name: str) -> str | None:
    for expression, kind in _KINDS:
        found = expression.search(name)
        if found:
            return f"{kind}{int(found[1] or 0):02}"
    if re.match(r"\w+_in\b", name):
        return "IN"
    return "OUT" if name.startswith("final_layer") else None


def _count(modules: Iterable[str], prefix: str) -> int:
    return len({path[len(prefix) + 1 :].split(".")[0] for path in modules if path.startswith(f"{prefix}.")})


def _number(value: Any) -> float:
    try:
        number: Any = float(value) if isinstance(value, str) else own_number(value)
    except ValueError:
        number = None
    if not finite(number):
        raise BadConfig(f"a block weight is a finite number, not {value!r}")
    return float(number)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 40 else [*names[:20], "…", *names[-8:]])
