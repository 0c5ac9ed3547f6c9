"""Where a layer stands: in which block of its component, and which part of the block it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from studio.adapters.overlap import block_of
from studio.adapters.targets.block_weights import Blocks
from studio.files.names import Names

__all__ = ["KINDS", "Kind", "blocks_of", "kind_of"]


class Kind(NamedTuple):
    """Which part of a block a layer is: what it belongs to, and its place there."""

    group: str
    part: str


_GROUPS: Final = (
    ("attention", ("q", "k", "v", "qkv", "out")),
    ("cross-attention", ("q", "k", "v", "qkv", "out")),
    ("attention of words", ("q", "k", "v", "qkv", "out")),
    ("feed-forward", ("in", "out")),
    ("feed-forward of words", ("in", "out")),
    ("around", ("in", "out", "mod", "norm", "embed")),
    ("convolution", ("1", "2", "skip", "resize")),
    ("rest", ("all",)),
)
KINDS: Final = tuple(Kind(group, part) for group, parts in _GROUPS for part in parts)
"""All of them, in the order of columns."""

_WORDS: Final = re.compile(r"(^|[._])(add|txt)[._]|_context\.|(^|\.)context_refiner\.|_add_out")
_CROSS: Final = re.compile(r"(^|\.)(attn2|crossattention|encoder_attn|EncDecAttention)\.")
_ATTENTION: Final = r"(?:^|\.)\w*(?:attn|attention|Attention)\w*\."
_PARTS: Final = tuple(
    (re.compile(expression), group, part)
    for expression, group, part in (
        (r"resnets\.\d+\.conv1$", "convolution", "1"),
        (r"resnets\.\d+\.conv2$", "convolution", "2"),
        (r"\.conv_shortcut$", "convolution", "skip"),
        (r"(down|up)samplers?\.", "convolution", "resize"),
        (r"attentions\.\d+\.proj_in$", "around", "in"),
        (r"attentions\.\d+\.proj_out$", "around", "out"),
        (rf"{_ATTENTION}(to_)?(in_proj\w*|qkv\w*)$", "attention", "qkv"),
        (rf"{_ATTENTION}(to_|add_)?q(uery|_proj)?$", "attention", "q"),
        (rf"{_ATTENTION}(to_|add_)?k(ey|_proj)?$", "attention", "k"),
        (rf"{_ATTENTION}(to_|add_)?v(alue|_proj)?$", "attention", "v"),
        (rf"{_ATTENTION}(to_(add_)?out|out_proj|o_proj|o|proj)(\.0)?$", "attention", "out"),
        (r"(net\.0\.proj|fc1|linear_in|feed_forward\.(linear_|w)[13]|wi(_\d)?|gate_proj|up_proj|proj_mlp|conv_inverted)$",
         "feed-forward", "in"),
        (r"(net\.2|fc2|linear_out|feed_forward\.(linear_|w)2|wo|down_proj|conv_(depth|point)|blocks\.\d+\.proj_out)$",
         "feed-forward", "out"),
        (r"time_emb_proj$|_mod(\.|$)|modulation|norm\w*\.linear(_\d)?$|^adaln_single\.linear$", "around", "mod"),
        (r"(^|[._])norm\w*$|\.ln_\w+$", "around", "norm"),
        (r"embed|(^|\.)(conv|img|txt)_in$|^adaln_single|caption_projection", "around", "embed"),
    )
)  # fmt: skip


def kind_of(path: str) -> Kind:
    """Returns which part of its block a layer is, by the names that models give.

    Args:
        path: of the layer, inside its component.

    Example:
        >>> tuple(kind_of("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"))
        ('cross-attention', 'k')
        >>> tuple(kind_of("transformer_blocks.3.ff_context.net.0.proj"))
        ('feed-forward of words', 'in')
    """
    for expression, group, part in _PARTS:
        if expression.search(path):
            if group == "attention" and _CROSS.search(path):
                group = "cross-attention"
            elif group in ("attention", "feed-forward") and _WORDS.search(path):
                group = f"{group} of words"
            return Kind(group, part)
    return Kind("rest", "all")


def blocks_of(names: Names, paths: Iterable[str]) -> dict[str, str]:
    """Returns path -> what its block is called: as ``block_weights`` do (``IN04``, ``D07``), else by its own name.

    They come in the order in which a picture passes through them, component by component.

    Args:
        names: of the model. paths: of layers, in the order of the model.
    """
    known: dict[str, str] = {}
    order: dict[str, int] = {}
    family = names.family
    for component, label in names.labels.items():
        if family is not None and label == family.denoiser:
            inside = {name: path for path, (part, name) in names.paths.items() if part == component}
            blocks = Blocks({}, list(inside), family)
            known |= {inside[name]: block for name, block in blocks.blocks.items() if block}
            order = {block: place for place, block in enumerate(sorted(blocks.known, key=_passed))}
    places = {component: place for place, component in enumerate(names.labels)}
    found = {path: known.get(path) or _named(names, path) for path in paths}
    seen = {path: index for index, path in enumerate(found)}
    first = min((seen[path] for path in found if path in known), default=0)

    def passed(path: str) -> tuple[int, int, int]:
        there = order.get(found[path], -1 if seen[path] < first else len(order))
        return places[names.paths[path][0]], there, seen[path]

    return {path: found[path] for path in sorted(found, key=passed)}


def _passed(block: str) -> tuple[int, str]:
    """Where a block stands on a picture's way: the middle of a U-Net lies between its sides."""
    sides = ("IN", "M", "D", "S", "J", "B", "OUT")
    kind = block.rstrip("0123456789")
    return sides.index(kind) if kind in sides else -1, block


def _named(names: Names, path: str) -> str:
    """A block by its own name; that of a text encoder, which has one row of them, by its number."""
    block, (component, name) = block_of(path), names.paths[path]
    number = block.rpartition(".")[2]
    return f"{component} {number}" if component and name and "encoder" in component and number.isdigit() else block
