"""What other programs call a method and its tensors, and where theirs computes something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from studio.adapters.sites.site import Site, is_attention_output, is_free_linear

__all__ = ["SAME_WAY", "Foreign", "Reform", "Way", "peft_covers", "peft_convolves", "peft_pads", "peft_ungrouped"]

Tables = dict[str, dict[str, Tensor]]
Reform = Callable[[Any, Mapping[str, Mapping[str, Tensor]]], tuple[Any, Tables]]
"""Makes another config, and the tensors of all layers, path -> name -> tensor, of the present ones."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How another program has a method, where names and shapes do not say it.

    Attributes:
        fields: names of its config fields that ``config`` or ``read`` takes into account.
        limit: says why the program has no such layer, or none that its tensors describe; "" where it has.
        differs: says how the program's own computation there departs from what the tensors mean, or "". Such an adapter
            is not written for it; one that is read acts as its tensors mean, and the report says so.
        config: fields of its config (PEFT), or numbers beside the tensors (LyCORIS' alpha) -> fields of ours. It raises
            DoesNotFit for what cannot be said here.
        read: those fields, the site, tensors as they are stored under our names -> ours.
        write: config, sites, layers -> its fields, and the tensors as it stores them. It raises DoesNotFit for what
            cannot be said there.
    """

    fields: tuple[str, ...] = ()
    limit: Callable[[Site], str] = lambda site: ""
    differs: Callable[[Site], str] = lambda site: ""
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}
    read: Callable[[Mapping[str, Any], Site, dict[str, Tensor]], dict[str, Tensor]] = lambda fields, site, tensors: (
        tensors
    )
    write: Callable[[Any, Mapping[str, Site], Mapping[str, dict[str, Tensor]]], tuple[dict[str, Any], Tables]] = (
        lambda config, sites, layers: ({}, dict(layers))
    )


SAME_WAY: Final = Way()


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The names that other programs use for a method; reading and writing files needs nothing else about it.

    Attributes:
        peft_type: PEFT's word for the method.
        peft_tensors: our tensor -> PEFT's. peft_embedding: where PEFT spells the tensors of an Embedding differently.
        peft_shared: tensors that PEFT stores once for the model, under these names; ours are with the first layer.
        peft_fields: our config field -> PEFT's. peft_flags: PEFT's fields that tell the method from others of its type.
        lycoris_tensors: our tensor -> kohya's or LyCORIS'. lycoris_algo: LyCORIS' word, "" for kohya's own network.
        layouts: our tensor -> its shape in PEFT and in LyCORIS, in the words of :mod:`studio.files.layout`.
        needs: tensors without which a layer is not of this method.
        ranks: tensors whose first axis is the rank; the first that is there counts.
        lycoris_minus: what LyCORIS subtracts from a tensor before storing it.
        lycoris_scaled: tensors that LyCORIS stores multiplied by the scale.
        unranked: the tensor that takes the scale where no tensor has a rank, because LyCORIS applies none there.
        inputs: our config field that names the layers with the second of two tensors of one foreign name, and the
            LyCORIS tensor that says so.
        fold: brings a config and the tensors of a layer to a form that other programs know.
        lycoris_form: brings them to those of another method, where kohya's tools and LyCORIS have only that one.
        shows: fields of our config that the tensors of all layers show (path -> name -> tensor).
        peft_way, lycoris_way: what is left to say about their forms of the method.
    """

    peft_type: str
    peft_tensors: Mapping[str, str]
    peft_embedding: Mapping[str, str] = field(default_factory=dict)
    peft_shared: Mapping[str, str] = field(default_factory=dict)
    peft_fields: Mapping[str, str] = field(default_factory=dict)
    peft_flags: Mapping[str, Any] = field(default_factory=dict)
    lycoris_tensors: Mapping[str, str] = field(default_factory=dict)
    lycoris_algo: str = ""
    layouts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    lycoris_minus: Mapping[str, float] = field(default_factory=dict)
    lycoris_scaled: tuple[str, ...] = ()
    unranked: str = ""
    inputs: tuple[str, str] | None = None
    fold: Reform | None = None
    lycoris_form: Reform | None = None
    shows: Callable[[Mapping[str, Mapping[str, Tensor]]], dict[str, Any]] = lambda layers: {}
    peft_way: Way = SAME_WAY
    lycoris_way: Way = SAME_WAY


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
