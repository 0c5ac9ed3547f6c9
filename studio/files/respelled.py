"""Spellings of keys that some tools have by themselves, brought to those that several have: one row each.

What a key is called here is only looked up by; reports, messages and files say what it is called in the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from studio.files.cloneofsimo import numbered
from studio.files.header import TensorInfo

__all__ = ["respelled", "tools_of"]

_SIDES: Final = {"1": "img_attn", "2": "txt_attn"}
_FLAT_ENCODERS: Final = {"clip_l": "lora_te1", "clip_g": "lora_te2", "t5xxl": "lora_te3"}
_ROWS: Final = (
    # XLabs' Flux: the processors of the attentions, of the picture (1) and of the text (2)
    (
        "XLabs",
        re.compile(r"^(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])\.(down|up)\.weight$"),
        lambda m: f"{m[1]}.{_SIDES[m[3]]}.{m[2]}.lora_{m[4]}.weight",
    ),
    (
        "XLabs",
        re.compile(r"^(single_blocks\.\d+)\.processor\.proj_lora\.(down|up)\.weight$"),
        lambda m: f"{m[1]}.linear2.lora_{m[2]}.weight",
    ),
    # queries, keys and values alone, of the layer that has the feed-forward's rows too
    (
        "XLabs",
        re.compile(r"^(single_blocks\.\d+)\.processor\.qkv_lora\.(down|up)\.weight$"),
        lambda m: f"{m[1]}.linear1_qkv.lora_{m[2]}.weight",
    ),
    # fal's Kontext: native names behind PEFT's prefix, without a config, at scale 1
    ("fal", re.compile(r"^base_model\.model\.((?:double|single)_blocks\..+)$"), lambda m: f"diffusion_model.{m[1]}"),
    ("Wan-Fun", re.compile(r"^lora_unet__(.+)$"), lambda m: f"lora_unet_{m[1]}"),
    # ComfyUI's names of text encoders, which kohya's prefixes tell apart
    (
        "ComfyUI",
        re.compile(
            r"^text_encoders\.(clip_l|clip_g|t5xxl)\.transformer\.(.+?)\.(lora_.+|hada_.+|lokr_.+|alpha|dora_scale)$"
        ),
        lambda m: f"{_FLAT_ENCODERS[m[1]]}_{m[2].replace('.', '_')}.{m[3]}",
    ),
)
_BARE: Final = re.compile(r"^(.+)\.lora_([AB])$")
_PAIR: Final = re.compile(r"^(.+)\.lora_([AB])\.weight$")
_KOHYA: Final = {"A": "down", "B": "up"}
_NORM: Final = re.compile(r"^(.+\.(?:query|key)_norm)\.scale$")
"""In Flux' control LoRAs: the weight that a norm has under them, beside pairs; in a checkpoint it stands by itself."""


def respelled(keys: Collection[str]) -> dict[str, str]:
    """Returns what each key of a file is looked up as.

    Args:
        keys: of the file.

    Example:
        >>> respelled(["double_blocks.0.processor.qkv_lora1.up.weight", "unet.to_q.lora_A"])
        ... # doctest: +NORMALIZE_WHITESPACE
        {'double_blocks.0.processor.qkv_lora1.up.weight': 'double_blocks.0.img_attn.qkv.lora_up.weight',
         'unet.to_q.lora_A': 'unet.to_q.lora_A.weight'}
    """
    adaptive = {key.removesuffix(".lora_E") for key in keys if key.endswith(".lora_E")}  # AdaLoRA's have no ending
    paired = any(key.endswith(".lora_A.weight") for key in keys)
    norms = {key: f"{found[1]}.ln_tuning_layers.weight" for key in keys if paired and (found := _NORM.match(key))}
    biased = {key.removesuffix(".diff_b") for key in keys if key.endswith(".diff_b")}
    return {key: norms.get(key) or _beside_bias(key, biased) or _said(key, adaptive) for key in keys}


def _beside_bias(key: str, biased: Collection[str]) -> str:
    """A pair in PEFT's names beside a bias in ComfyUI's, as files for Wan have it: kohya's names, or ""."""
    found = _PAIR.match(key)
    return f"{found[1]}.lora_{_KOHYA[found[2]]}.weight" if found is not None and found[1] in biased else ""


def tools_of(keys: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Returns the tools that alone spell keys of a file as they are.

    Args:
        keys: of the file, with what its header says of them.

    Example:
        >>> tools_of({"lora_unet__blocks_0_self_attn_q.alpha": TensorInfo("F32", (), 0, 4)})
        ('Wan-Fun',)
    """
    found = dict.fromkeys(tool for key in keys for tool, expression, _ in _ROWS if expression.match(key))
    return (*found, *(("cloneofsimo",) if numbered(keys)[0] else ()))


def _said(key: str, adaptive: Collection[str]) -> str:
    for _, expression, spell in _ROWS:
        found = expression.match(key)
        if found is not None:
            return spell(found)
    bare = _BARE.match(key)
    return f"{key}.weight" if bare is not None and bare[1] not in adaptive else key
