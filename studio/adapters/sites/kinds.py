"""Which module of a base is a site, and of which kind.

Methods look at the ordinary layers (:data:`~studio.adapters.sites.site.LAYERS`) and at the further kinds that they
cover: norms, and any module by its output. So a pattern of LoRA's names the same layers whatever other methods can do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from typing import Any, TypeAlias, cast

from torch import nn

from studio.adapters.sites.language import ModelSite
from studio.adapters.sites.module import ModuleSite
from studio.adapters.sites.norm import NormSite, is_norm
from studio.adapters.sites.quantized import QuantizedSite
from studio.adapters.sites.site import LAYERS, AttentionSite, ConvSite, EmbeddingSite, GPT2Site, LinearSite, Site
from studio.adapters.sites.stored import check_stored
from studio.adapters.sites.subclass import ScaledEmbeddingSite, computes_linear
from studio.errors import UnsupportedLayer
from studio.quantization import packing_of

__all__ = ["has_own_forward", "is_site", "kind_of", "site_for"]


Layer: TypeAlias = tuple[type[nn.Module], Callable[..., Site], str]
"""Class of a layer, what makes a site of it, and its kind."""


def _gpt2_layer() -> type[nn.Module] | None:
    """GPT-2's Conv1D where transformers has been imported; a model that holds one has done so."""
    module = sys.modules.get("transformers.pytorch_utils")
    return None if module is None else cast("type[nn.Module]", module.Conv1D)


def _layers() -> tuple[Layer, ...]:
    return _known(cast(Any, _gpt2_layer()))


@functools.lru_cache(maxsize=4)
def _known(gpt2: type[nn.Module] | None) -> tuple[Layer, ...]:
    """The classes of layers, with those of libraries that are there."""
    kinds: list[Layer] = [
        (nn.Linear, LinearSite, "linear"),
        (nn.Conv2d, ConvSite, "conv"),
        (nn.Embedding, EmbeddingSite, "embedding"),
        (nn.Conv1d, ConvSite, "conv"),
        (nn.Conv3d, ConvSite, "conv"),
        (nn.MultiheadAttention, AttentionSite, "attention"),
    ]
    if gpt2 is not None:
        kinds.append((gpt2, GPT2Site, "conv1d-gpt2"))
    return tuple(kinds)


def _layer_of(module: nn.Module) -> Layer | None:
    return _layer_above(cast(Any, type(module)), cast(Any, _gpt2_layer()))


@functools.lru_cache(maxsize=1024)
def _layer_above(cls: Any, gpt2: type[nn.Module] | None) -> Layer | None:
    """The layer that a class is a subclass of; a model has hundreds of modules of a few classes."""
    return next((one for one in _known(cast(Any, gpt2)) if issubclass(cls, one[0])), None)


def kind_of(module: nn.Module) -> str | None:
    """Returns the kind of site that ``module`` is, or None for what has no forward (a ModuleList).

    Example:
        >>> [kind_of(module) for module in (nn.Linear(2, 2), nn.LayerNorm(2), nn.Sequential(), nn.ModuleList())]
        ['linear', 'norm', 'module', None]
    """
    if packing_of(module) is not None:
        return "linear"
    layer = _layer_of(module)
    if layer is not None:
        return layer[2]
    if is_norm(module):
        return "norm"
    return None if type(module).forward is nn.Module.forward else "module"


def has_own_forward(module: nn.Module) -> bool:
    """Says whether a layer is of a class that computes something else than its torch class."""
    own, layer = vars(type(module)).get("hosts", type(module)), _layer_of(module)
    return layer is not None and own.forward is not layer[0].forward and packing_of(module) is None


def is_site(module: nn.Module, kinds: Collection[str] = ()) -> bool:
    """Says whether ``module`` is an ordinary layer, or of one of the further ``kinds``.

    Example:
        >>> is_site(nn.Linear(2, 2)), is_site(nn.LayerNorm(2)), is_site(nn.LayerNorm(2), ("norm",))
        (True, False, True)
    """
    kind = kind_of(module)
    return kind in LAYERS or kind in kinds


def site_for(path: str, module: nn.Module, kinds: Collection[str] = ()) -> Site:
    """Describes ``module`` as a site.

    Args:
        path: where the module stands in its model, for messages.
        module: the layer.
        kinds: kinds that it may be besides an ordinary layer.

    Raises:
        UnsupportedLayer: a class that the studio cannot adapt, a subclass with a forward of its own, whose function is
            not known, or a layer that computes its weight.

    Example:
        >>> site_for("net.0", nn.Conv2d(4, 8, 3, groups=2))
        <conv site net.0: 8x18>
        >>> site_for("net.1", nn.LayerNorm(4), ("norm",))
        <norm site net.1: 4x1>
    """
    if "model" in kinds:
        return ModelSite(path, module)
    packing = packing_of(module)
    if packing is not None:
        return QuantizedSite(path, module, packing)
    layer = _layer_of(module)
    if layer is not None:
        return _layer_site(path, module, kinds, *layer[:2])
    kind = kind_of(module)
    if kind == "norm" and kind in kinds:
        return NormSite(path, module)
    if kind == "module" and kind in kinds:
        return ModuleSite(path, module)
    known = ", ".join(layer.__name__ for layer, _, _ in _layers())
    raise UnsupportedLayer(f"{path or 'the model'} is a {type(module).__name__}; adapters can act on: {known}")


def _layer_site(
    path: str,
    module: nn.Module,
    kinds: Collection[str],
    layer: type[nn.Module],
    make: Callable[[str, nn.Module], Site],
) -> Site:
    """The site of an ordinary layer, which may be of a subclass of ``layer``."""
    check_stored(path, module)
    if type(module).forward is layer.forward:
        return make(path, module)
    if "module" in kinds:
        return ModuleSite(path, module)
    if isinstance(module, nn.Embedding):
        return ScaledEmbeddingSite(path, module)
    if isinstance(module, nn.Linear) and computes_linear(module):
        return make(path, module)
    raise UnsupportedLayer(
        f"{path or 'the model'} is a {type(module).__name__}, a {layer.__name__} with a forward of its own; what an "
        "adapter would have to change in it is not known (exclude it, or use its parts)"
    )
