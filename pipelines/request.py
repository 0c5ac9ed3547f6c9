"""A request: one picture that is asked for, whole, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.adapters import Strength
from studio.config import finite, own_number
from studio.errors import BadConfig
from studio.families import Base
from studio.limits import limit, too_many
from studio.pipelines.start import Given, first_step
from studio.pipelines.upscale import Upscale

__all__ = ["LARGEST_SEED", "Request", "check_request", "is_count"]

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture that is asked for.

    Args:
        prompt: the prompt, its tags and choices taken out already; what else it has of the prompt language is read
            while it is drawn (:mod:`studio.pipelines.prompting.brackets`).
        negative: the prompt that guidance leads away from, likewise.
        seed: from 0 to 2⁶³ − 1.
        width: pixels, a multiple of ``Base.multiple``.
        height: pixels, a multiple of ``Base.multiple``.
        steps: denoising steps.
        guidance: scale g of classifier-free guidance, ``u + g (c − u)``; 1 is the prompt alone.
        embedded: the guidance that the denoiser embeds, for bases that embed one.
        scheduler: a name, a diffusers scheduler, or ``None`` for the base's own.
        blend: the adapters that act; ``None``: the current blend.
        given: a picture to start from; ``None``: noise alone.
        upscale: how it is drawn again in a second pass; ``None``: it is not.
        bake: whether its blend is folded into the weights while it is drawn.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    width: int
    height: int
    steps: int = 20
    guidance: float = 5.0
    embedded: float | None = None
    scheduler: Any = None
    blend: Mapping[str, float | Strength] | None = None
    given: Given | None = None
    upscale: Upscale | None = None
    bake: bool = False

    def __post_init__(self) -> None:
        for name in ("seed", "width", "height", "steps", "guidance", "embedded"):  # numbers of numpy and torch too
            object.__setattr__(self, name, own_number(getattr(self, name)))


def is_count(value: object) -> bool:
    """Whether it is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_request(base: Base, request: Request) -> None:
    """Checks what is asked for before anything is drawn.

    Args:
        base: which shall draw it. request: the picture.

    Raises:
        BadConfig: an impossible size, seed, number of steps, strength or guidance.
    """
    _check_size(base, request)
    seed = request.seed
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
        raise BadConfig(f"seed={seed!r}: a seed must be a whole number from 0 to {LARGEST_SEED}")
    if not is_count(request.steps):
        raise BadConfig(f"steps={request.steps!r}: the number of steps must be a whole number from 1 on")
    first_step(base, request.given, request.steps)
    _check_guidance(base, request)


def _check_size(base: Base, request: Request) -> None:
    family, unit = base.family, base.multiple
    largest = None if family.largest is None else family.largest(base.pipe)
    for name in ("width", "height"):
        side = getattr(request, name)
        if not is_count(side):
            raise BadConfig(f"{name}={side!r}: a side must be a whole number of pixels from {unit} on")
        if side > limit("side"):
            raise BadConfig(f"{name}={side}: {too_many('side')}")
        if side % unit:
            lower = side // unit * unit
            fitting = " or ".join(str(fit) for fit in (lower, lower + unit) if fit)
            raise BadConfig(f"{name}={side}: sides of {family.title} are divisible by {unit}; ask for {fitting}")
        if largest is not None and side > largest:
            raise BadConfig(
                f"{name}={side}: {base.id} has no positions beyond {largest} pixels; ask for a smaller side"
            )


def _check_guidance(base: Base, request: Request) -> None:
    if not finite(request.guidance) or request.guidance < 0:
        raise BadConfig(f"guidance={request.guidance!r}: guidance must be a finite number from 0 on (1: prompt alone)")
    if request.guidance != 1 and not base.defaults.negative:
        raise BadConfig(
            f"guidance={request.guidance!r}: {base.id} was distilled to draw without it, in one pass; leave it out"
            + ("" if base.defaults.embedded is None else " (embedded_guidance is what it takes)")
        )
    if request.embedded is not None and base.defaults.embedded is None:
        raise BadConfig(
            f"embedded_guidance={request.embedded!r}: {base.id} embeds no guidance; guidance is what it takes"
        )
    if request.embedded is not None and (not finite(request.embedded) or request.embedded < 0):
        raise BadConfig(f"embedded_guidance={request.embedded!r}: it must be a finite number from 0 on")
