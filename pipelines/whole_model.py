"""A base with a blend folded into its weights, written as a folder of its own and proven by drawing from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from studio.adapters import bake, blended, current_blend, unbake
from studio.adapters.contract.strength import StrengthLike
from studio.atomic import atomic_folder
from studio.errors import BadFile, NoEffect, Refused
from studio.families import Base, components, open_base
from studio.given import given_path
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from studio.quantization.layers import in_dense_layers

__all__ = ["write_whole_model"]

_PROMPT = "a photo"
_STEPS = 2


def write_whole_model(
    base: Base, folder: str | Path, blend: Mapping[str, StrengthLike] | str | None = None
) -> tuple[Path, float]:
    """Bakes a blend, writes the whole pipeline as a diffusers folder, opens it and compares what both draw.

    Args:
        base: with the adapters on it; its own bits come back afterwards.
        folder: where to; it must not be there.
        blend: what is folded in; None: the current blend.

    Returns:
        The folder, and the largest difference of a pixel between the two, in [0, 2].

    Raises:
        BadFile: nothing can be written there, or something is there. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked already, weights are offloaded, or a strength that differs by sample, moment or
            place. NoEffect: the folder would draw what the base draws. Refused: it draws something else than the blend.
    """
    place, pipe = given_path(folder), base.pipe
    if place.exists():
        raise BadFile(f"{place} is there already; choose another folder")
    strengths = current_blend(pipe) if blend is None else blend
    with blended(pipe, {}):
        plain = _probe(base)
    bake(pipe, strengths)
    try:
        wanted = _probe(base)
        if torch.equal(plain, wanted):
            raise NoEffect("the blend changes nothing that is drawn, so the folder would be the base: name adapters")
        with atomic_folder(place) as temporary:
            with in_dense_layers(components(pipe).values()):
                pipe.save_pretrained(temporary, safe_serialization=True)
            written = open_base(str(temporary), dtype=pipe.components[base.family.denoiser].dtype)
            apart = float((_probe(written) - wanted).abs().max())
            if apart > 1 / 255:
                raise Refused(f"what was written draws other pictures (a pixel is off by {apart:.3f}); nothing is kept")
    finally:
        unbake(pipe)
    return place, apart


def _probe(base: Base) -> torch.Tensor:
    """Pixels of one small picture, ``(1, 3, H, W)`` in [-1, 1]."""
    own, unit = base.defaults, base.family.multiple
    side = min(*base.native, max(unit, 64 // unit * unit))
    request = Request(
        prompt=_PROMPT, width=side, height=side, steps=_STEPS, guidance=1.0, embedded=own.embedded, blend=None
    )
    return draw(base, [request], rows=1)[0].cpu()
