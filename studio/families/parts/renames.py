"""Names of layers as those who trained a base have them, from tables of what is called otherwise in diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from studio.families.native import Native

__all__ = ["JOINT_FUSED", "QKV", "Renames", "flux_names", "in_blocks", "renamed"]

Renames = Mapping[str, tuple[str, ...]]
"""Native name -> diffusers' names; ``{}`` stands for the number of a block."""

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
QKV: Final = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED: Final = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
JOINT_FUSED: Final[Mapping[str, tuple[str, ...]]] = {"attn.to_qkv": QKV, "attn.to_added_qkv": _ADDED}
"""What ``fuse_qkv_projections`` puts in the place of three layers, which stay in the tree and are not called."""


def in_blocks(native: str, ours: str, table: Renames) -> dict[str, tuple[str, ...]]:
    """Returns a table with what stands before the names in one block.

    Example:
        >>> in_blocks("double_blocks.{}.", "blocks.{}.", {"img_attn.proj": ("attn.to_out.0",)})
        {'double_blocks.{}.img_attn.proj': ('blocks.{}.attn.to_out.0',)}
    """
    return {native + name: tuple(ours + path for path in paths) for name, paths in table.items()}


def renamed(
    table: Renames, *, swapped: Collection[str] = (), others: bool = False
) -> Callable[[Collection[str]], tuple[Native, ...]]:
    """Returns a function of the names of a denoiser's layers that gives their native ones.

    Args:
        table: what is called otherwise.
        swapped: native names of those whose halves of rows stand in the other order.
        others: whether the rest is called the same; else it has no native name.

    Example:
        >>> renamed({"a.{}.qkv": ("b.{}.q", "b.{}.k")})(["b.7.q", "b.7.k", "c"])
        (Native(name='a.7.qkv', paths=('b.7.q', 'b.7.k'), swapped=False),)
    """
    natives = {paths[0]: (name, paths) for name, paths in table.items()}
    known = {path for paths in table.values() for path in paths}

    def of(layers: Collection[str]) -> tuple[Native, ...]:
        found = []
        for layer in layers:
            number = _NUMBER.search(layer)
            count = "" if number is None else number.group()
            form = layer if number is None else f"{layer[: number.start()]}{{}}{layer[number.end() :]}"
            if form in natives:
                name, paths = natives[form]
                found.append(Native(name.replace("{}", count), _whole(layers, paths, count), name in swapped))
            elif others and form not in known:
                found.append(Native(layer, (layer,)))
        return tuple(found)

    return of


def _whole(layers: Collection[str], paths: tuple[str, ...], count: str) -> tuple[str, ...]:
    """The layers that are one matrix natively; the one that the model has in their place where it was fused."""
    for whole, parts in JOINT_FUSED.items():
        head = paths[0].removesuffix(parts[0])
        if paths == tuple(head + part for part in parts) and f"{head}{whole}".replace("{}", count) in layers:
            return (f"{head}{whole}".replace("{}", count),)
    return tuple(path.replace("{}", count) for path in paths)


_DOUBLE: Final[Renames] = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": _ADDED,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE: Final[Renames] = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}
_ENDS: Final[Renames] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}


def flux_names(double: Renames, single: Renames, ends: Renames) -> Callable[[Collection[str]], tuple[Native, ...]]:
    """Returns the native names of a transformer as Black Forest Labs build them.

    Args:
        double: the feed-forward and modulation of a block of two streams. single: a block of one.
        ends: what stands outside the blocks, and is not in all of these families.
    """
    blocks = in_blocks("double_blocks.{}.", "transformer_blocks.{}.", {**_DOUBLE, **double})
    blocks |= in_blocks("single_blocks.{}.", "single_transformer_blocks.{}.", {**_SINGLE, **single})
    return renamed({**blocks, **_ENDS, **ends}, swapped=("final_layer.adaLN_modulation.1",))
