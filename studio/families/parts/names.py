"""Names of the layers of text encoders and of the transformers that denoise, as presets name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

__all__ = ["CLIP", "LANGUAGE", "T5", "TextNames", "is_a", "of_class", "presets"]

TextNames = tuple[tuple[str, ...], tuple[str, ...]]
"""The attention's and the feed-forward's projections of a text encoder."""

CLIP: Final[TextNames] = (("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2"))
T5: Final[TextNames] = (
    ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
    ("DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"),
)
LANGUAGE: Final[TextNames] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
"""Gemma, Qwen and Mistral."""


def presets(
    denoiser: str,
    attention: tuple[str, ...],
    feedforward: tuple[str, ...],
    encoders: Mapping[str, TextNames],
    *,
    tools: tuple[str, ...] | None = None,
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns a family's presets.

    Args:
        denoiser: its component.
        attention, feedforward: patterns of its layers.
        encoders: component -> names of its layers.
        tools: what the usual trainers take; None: attention and feed-forward.

    Example:
        >>> presets("unet", ("to_q",), ("net.2",), {"text_encoder": CLIP})["attention+mlp"]["unet"]
        ('to_q', 'net.2')
    """
    tools = attention + feedforward if tools is None else tools
    text = {name: first for name, (first, _) in encoders.items()}
    whole = {name: first + second for name, (first, second) in encoders.items()}
    return {
        "attention": {denoiser: attention, **text},
        "attention+mlp": {denoiser: attention + feedforward, **whole},
        # What the two trainers take unless told otherwise.
        "subject": {denoiser: tools},
        "style": {denoiser: tools},
    }


def of_class(component: str, name: str) -> Callable[[Mapping[str, nn.Module]], bool]:
    """Returns a family's ``recognise``: whether a component, or a module by itself, is of a class of this name."""
    return lambda parts: is_a(parts.get(component, parts.get("")), name)


def is_a(module: nn.Module | None, name: str) -> bool:
    """Whether a module is of a class of this name, which is not imported for it."""
    return module is not None and name in {cls.__name__ for cls in type(module).__mro__}
