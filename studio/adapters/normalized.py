"""A blend whose adapters together go no further than the strongest of them does by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.turns import turn
from studio.adapters.overlap import Overlap, by_block, one_blend, overlaps

__all__ = ["normalized"]

_ROUNDING: Final = 1e-6


def normalized(model: Any, blend: Mapping[str, StrengthLike] | str | None = None) -> dict[str, Strength]:
    """Returns a blend with its strengths lowered where its adapters add up, so that 1.0 + 1.0 does not burn.

    In every block ``b`` of the model all strengths are multiplied by ``min(1, 1 / g_b)``, where ``g_b`` is the growth
    ``‖Σ s_i Δ_i‖_b / max_i max(1, s_i) ‖Δ_i‖_b``: the sum moves the block's weights no further than the strongest
    adapter does by itself, at strength 1 or at its own if that is more, and in the direction that it had. Where one
    adapter acts, where they undo each other, and where the strengths are low enough already, nothing changes. Norms
    are over all weights and biases of the block's layers.

    Args:
        model: the model or pipeline.
        blend: the blend; None: the current one.

    Returns:
        The same adapters, whose strengths have a factor per block; it is a blend like any other.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: strengths differ by sample, moment or place, a blend is baked, or weights that are needed are
            offloaded.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> for name in ("dog", "ink"):
        ...     _ = studio.attach(net, studio.BitFit(targets=("0",)), name=name)
        ...     _ = studio.state(net, name)["0.bias"].data.fill_(1.0)
        >>> {name: strength.at("", "0") for name, strength in normalized(net, {"dog": 1.0, "ink": 1.0}).items()}
        {'dog': 0.5, 'ink': 0.5}
    """
    with turn(model):
        strengths = one_blend(model, blend)
        places = _burning(overlaps(model, strengths, base=False))
    return {name: _lowered(name, strength, places) for name, strength in strengths.items()}


def _burning(sites: Iterable[Overlap]) -> list[Overlap]:
    """The blocks where the sum goes further than the strongest of its adapters."""
    return [block for block in by_block(sites) if block.growth > 1.0 + _ROUNDING]


def _lowered(name: str, strength: Strength, places: Iterable[Overlap]) -> Strength:
    """The strength of an adapter, lowered in the blocks where it is not the only one."""
    blocks = dict(strength.blocks)
    for place in places:
        if name in place.norms:
            layers = rf"re:{re.escape(place.place)}(\..*)?"
            blocks[layers] = blocks.get(layers, 1.0) / place.growth
    components: dict[str, Any] = dict(strength.components)
    return Strength(strength.value, blocks=blocks, **components)
