"""cloneofsimo/lora, the first trainer of LoRAs for Stable Diffusion: its files number their layers.

A ``.safetensors`` file has keys ``unet:3:up`` and ``text_encoder:0:down``, a ``.pt`` file of one component the list
``[up_0, down_0, up_1, down_1, …]``; there is no alpha, ``ΔW = up · down``. The number of a pair is its place among the
layers of ``CrossAttention`` and ``GEGLU``, in the order in which diffusers' UNet of SD1 and SD2 registers its blocks:
down, up, and the middle last. Within a block today's order is attn1, attn2, ff; until diffusers 0.10 it was attn1, ff,
attn2, which is told by the fifth pair: GEGLU has eight times as many outputs as inputs, and a query as many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from studio.files.header import TensorInfo

__all__ = ["EXPECTED", "listed", "numbered"]

_KEY: Final = re.compile(r"^(unet|text_encoder):(0|[1-9]\d{0,3}):(up|down)$")
_PARTS: Final = {"up": "lora_B.weight", "down": "lora_A.weight"}
_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
_GEGLU: Final = "ff.net.0.proj"
_WITHOUT_GEGLU: Final = 128
_EXTENDED: Final = 224
_UNETS: Final = (144, _WITHOUT_GEGLU, _EXTENDED)
"""Pairs of a UNet: of its attentions and GEGLU; without GEGLU, as the first versions had it; with the convolutions."""
_CLIP: Final = ("k_proj", "v_proj", "q_proj", "out_proj")
_ENCODERS: Final = {48: 12, 92: 23}
"""Pairs of a text encoder -> its layers: CLIP-L of SD1, OpenCLIP-H of SD2."""
EXPECTED: Final = (
    "such a file has 288 tensors of a UNet (144 pairs; 256 without GEGLU, 448 with convolutions) and 96 of a text "
    "encoder (48 pairs; 184 of SD2's)"
)
"""What a right count is, for messages."""


def numbered(keys: Mapping[str, TensorInfo]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what each numbered key is called in diffusers' files, and why others mean no layer.

    Args:
        keys: of a file, with their shapes: ``up`` is ``(out, r)``, ``down`` is ``(r, in)``.

    Returns:
        Key -> name, and key -> reason. Keys of other forms are in neither.

    Example:
        >>> one = {f"text_encoder:{n}:{part}": TensorInfo("F16", shape, 0, 0)
        ...        for n in range(48) for part, shape in {"up": (768, 4), "down": (4, 768)}.items()}
        >>> numbered(one)[0]["text_encoder:4:up"]
        'text_encoder.text_model.encoder.layers.1.self_attn.k_proj.lora_B.weight'
        >>> numbered({"unet:0:up": TensorInfo("F16", (320, 4), 0, 0)})[1]["unet:0:up"][:48]
        'its number tells no layer: the file has 1 tensor'
    """
    pairs: dict[str, dict[int, dict[str, str]]] = {}
    for key in keys:
        found = _KEY.match(key)
        if found is not None:
            pairs.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = key
    placed: dict[str, str] = {}
    refused: dict[str, str] = {}
    for component, table in pairs.items():
        layers = _layers(component, table, keys)
        own = [key for pair in table.values() for key in pair.values()]
        if not layers:
            tensors = f"{len(own)} tensor{'s' if own[1:] else ''} of {component}"
            refused |= dict.fromkeys(own, f"its number tells no layer: the file has {tensors}, and {EXPECTED}")
            continue
        for number, layer in enumerate(layers):
            placed |= {key: f"{component}.{layer}.{_PARTS[part]}" for part, key in table[number].items()}
    return placed, refused


def listed(content: Sequence[Any]) -> dict[str, Tensor] | None:
    """Returns the tensors of a list under the keys that the later format gives them, or None where it is no such list.

    Args:
        content: ``[up_0, down_0, …]``, ``(out, r)`` and ``(r, in)``, of a UNet or of a text encoder: the count tells.
    """
    component = {**dict.fromkeys(_UNETS, "unet"), **dict.fromkeys(_ENCODERS, "text_encoder")}.get(len(content) // 2)
    if component is None or len(content) % 2 or not all(isinstance(one, Tensor) for one in content):
        return None
    return {f"{component}:{place // 2}:{('up', 'down')[place % 2]}": one for place, one in enumerate(content)}


def _layers(component: str, table: Mapping[int, Mapping[str, str]], keys: Mapping[str, TensorInfo]) -> list[str]:
    """The layers in the order of their numbers; none where the numbers are not those of a whole file."""
    count = len(table)
    whole = table.keys() == set(range(count)) and all(pair.keys() == _PARTS.keys() for pair in table.values())
    if whole and component == "text_encoder" and count in _ENCODERS:
        blocks = (f"text_model.encoder.layers.{place}.self_attn" for place in range(_ENCODERS[count]))
        return [f"{block}.{layer}" for block in blocks for layer in _CLIP]
    if not whole or component != "unet" or count not in _UNETS:
        return []
    found: list[str] = []
    for block in _blocks():
        if ".resnets." not in block:
            at = len(found) + len(_ATTENTION)
            early = count != _WITHOUT_GEGLU and _widens(table[at], keys)
            found += [f"{block}.{layer}" for layer in _inside(count, early)]
        elif count == _EXTENDED:
            found += _convolutions(block)
    return found


def _blocks() -> Iterator[str]:
    """The blocks of a UNet of SD1 and SD2 with layers to number, as they are registered."""
    for place in range(4):
        yield from _level(f"down_blocks.{place}", 2 if place < 3 else 0, 2)
    for place in range(4):
        yield from _level(f"up_blocks.{place}", 3 if place > 0 else 0, 3)
    yield from _level("mid_block", 1, 2)


def _level(name: str, attentions: int, resnets: int) -> Iterator[str]:
    yield from (f"{name}.attentions.{place}.transformer_blocks.0" for place in range(attentions))
    yield from (f"{name}.resnets.{place}" for place in range(resnets))


def _inside(count: int, early: bool) -> list[str]:
    """The layers of a transformer block; ``early`` is the order until diffusers 0.10."""
    first, second = ([f"{attention}.{layer}" for layer in _ATTENTION] for attention in ("attn1", "attn2"))
    wide = [] if count == _WITHOUT_GEGLU else [_GEGLU]
    return [*first, *wide, *second] if early else [*first, *second, *wide]


def _widens(pair: Mapping[str, str], keys: Mapping[str, TensorInfo]) -> bool:
    """Whether a layer has more outputs than inputs, as GEGLU has and a query has not."""
    up, down = keys[pair["up"]].shape, keys[pair["down"]].shape
    return len(up) > 1 and len(down) > 1 and up[0] > down[1]


def _convolutions(block: str) -> list[str]:
    """The layers of a residual block, one of which joins widths and is there where they differ."""
    joins = block.startswith("up_blocks") or block in ("down_blocks.1.resnets.0", "down_blocks.2.resnets.0")
    return [f"{block}.{layer}" for layer in ("conv1", "time_emb_proj", "conv2", *(("conv_shortcut",) if joins else ()))]
