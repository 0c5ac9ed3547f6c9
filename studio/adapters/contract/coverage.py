"""On which layers PEFT has a method and which it adapts by itself, and where it computes what no tensor says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from studio.adapters.sites.site import Site, is_attention_output, is_free_linear

__all__ = [
    "USUAL_TARGETS",
    "by_model",
    "peft_convolves",
    "peft_covers",
    "peft_pads",
    "peft_uneven",
    "peft_ungrouped",
    "peft_wide",
]

_CONVOLUTIONS: Final = {"Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d}


def peft_covers(site: Site, *names: str) -> str:
    """Says that PEFT's method has no such layer, or "" where it has.

    Args:
        site: the layer.
        names: the layers that it has, by PEFT's words: Linear, Conv1D (GPT-2's), Embedding, MultiheadAttention, Conv1d,
            Conv2d, Conv3d.

    Example:
        >>> from studio.adapters.sites.site import ConvSite
        >>> peft_covers(ConvSite("layer", nn.Conv3d(1, 1, 1)), "Linear", "Conv1d", "Conv2d")
        "PEFT's covers Linear, Conv1d and Conv2d layers, no Conv3d"
    """
    name = _peft_word(site)
    if name in names:
        return ""
    *first, last = names
    return f"PEFT's covers {', '.join(first)}{' and ' if first else ''}{last} layers, no {name}"


def _peft_word(site: Site) -> str:
    module = site.module
    if site.kind == "conv1d-gpt2":
        return "Conv1D"
    if site.kind == "embedding":
        return "Embedding"
    if is_free_linear(module):
        return "Linear"
    if isinstance(module, nn.MultiheadAttention) or is_attention_output(module):
        return "MultiheadAttention"
    return next((word for word, kind in _CONVOLUTIONS.items() if isinstance(module, kind)), type(module).__name__)


def peft_pads(site: Site) -> str:
    """Says that a convolution is padded with something else than zeros, which PEFT's change always is, or ""."""
    module: Any = site.module
    if site.kind != "conv" or module.padding_mode == "zeros" or not any(module._reversed_padding_repeated_twice):
        return ""
    return f"PEFT's change pads the convolution with zeros, not in its mode {module.padding_mode!r}"


def peft_convolves(site: Site) -> str:
    """Says how the convolution that PEFT's LoRA makes beside a convolution differs from it, or ""."""
    module: Any = site.module
    if site.kind != "conv":
        return ""
    if any(size > 1 and step > 1 for size, step in zip(module.kernel_size, module.dilation, strict=True)):
        return "PEFT's change leaves out the convolution's dilation"
    return peft_pads(site)


def peft_ungrouped(site: Site) -> str:
    """Says that a convolution is grouped, where the pair of PEFT's LoRA is not, or ""."""
    module: Any = site.module
    if site.kind != "conv" or module.groups == 1:
        return ""
    return "PEFT lets each output of a grouped convolution see all inputs, which is no change of its weight"


def peft_uneven(site: Site) -> str:
    """Says that a convolution is one whose turned weight PEFT's HRA and BOFT do not compute, or ""."""
    module: Any = site.module
    if not isinstance(module, nn.Conv2d):
        return ""
    uneven = [len(set(module.kernel_size)), len(set(module.stride)), len(set(module.padding))] != [1, 1, 1]
    if uneven or set(module.dilation) != {1} or module.groups != 1:
        return "on a convolution PEFT's knows one kernel size, stride and padding, and neither dilation nor groups"
    return ""


def peft_wide(site: Site) -> str:
    """Says that a convolution is one on which PEFT's OFT computes something that is no turned weight, or ""."""
    module: Any = site.module
    if not isinstance(module, nn.Conv2d):
        return ""
    if set(module.kernel_size) != {1} or module.groups != 1 or set(module.dilation) != {1}:
        return (
            "on a convolution wider than 1 x 1 PEFT's adds up overlapping patches, which is no rotation of the weight"
        )
    return ""


def by_model(rows: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Turns "layers": "model types" into model type -> layers.

    Example:
        >>> by_model({"q v": "t5 mt5"})
        {'t5': ('q', 'v'), 'mt5': ('q', 'v')}
    """
    return {model: tuple(names.split()) for names, models in rows.items() for model in models.split()}


USUAL_TARGETS: Final = by_model(
    {
        "q_proj v_proj": "llama llama4 mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text opt bart gptj gpt_neo "
        "stablelm",
        "q v": "t5 mt5",
        "c_attn": "gpt2 gpt_bigcode",
        "query value": "bert roberta xlm-roberta electra layoutlm",
        "query_key_value": "bloom falcon gpt_neox chatglm",
        "q_proj v_proj fc1 fc2": "phi",
        "q v q_proj v_proj": "blip-2",
        "qkv_proj": "codegen",
        "in_proj": "deberta",
        "query_proj value_proj": "deberta-v2",
        "Wqkv": "mpt",
        "q_proj k_proj v_proj o_proj": "nemotron_h",
        "key value receptance output": "rwkv",
    }
)
"""The layers that PEFT 0.21 adapts with most methods where none are named."""
