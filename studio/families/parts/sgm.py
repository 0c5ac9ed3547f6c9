"""A U-Net's layers as CompVis' and Stability's code has them, under input, middle and output blocks."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from studio.families.native import Native

__all__ = ["sgm_names"]

_RESNET: Final = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK: Final = re.compile(
    r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def sgm_names(layers: Collection[str]) -> tuple[Native, ...]:
    """Returns the native names of a U-Net's layers.

    Example:
        >>> names = ["down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.1.conv1", "down_blocks.1.resnets.0.conv1"]
        >>> [native.name for native in sgm_names(names)]
        ['input_blocks.1.0.in_layers.2', 'input_blocks.2.0.in_layers.2', 'input_blocks.4.0.in_layers.2']
    """
    stride = 1 + len({layer.split(".")[3] for layer in layers if layer.startswith("down_blocks.0.resnets.")})
    attends = {layer.split(".")[1] for layer in layers if re.match(r"up_blocks\.\d+\.attentions\.", layer)}
    found = []
    for layer in layers:
        match = _BLOCK.fullmatch(layer)
        name = _TOP.get(layer) if match is None else _in_block(match, stride, attends)
        if name is not None:
            found.append(Native(name, (layer,)))
    return tuple(found)


def _in_block(match: re.Match[str], stride: int, attends: Collection[str]) -> str | None:
    """The name of a layer in a block; None where it has none."""
    side, level, kind, index, rest = match.groups()
    number = int(index)
    if kind == "resnets" and rest not in _RESNET:
        return None
    leaf = _RESNET.get(rest, rest)
    if side == "mid":
        return f"middle_block.{2 * number}.{leaf}" if kind == "resnets" else f"middle_block.1.{leaf}"
    first = stride * int(level)
    if kind == "downsamplers":
        return f"input_blocks.{first + stride}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + stride - 1}.{2 if level in attends else 1}.{leaf}"
    blocks, place = ("input_blocks", first + number + 1) if side == "down" else ("output_blocks", first + number)
    return f"{blocks}.{place}.{0 if kind == 'resnets' else 1}.{leaf}"
