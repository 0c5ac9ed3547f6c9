"""What the prompts of a batch say to the denoiser, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studio.families import Base, Conditioning, Shot
from studio.pipelines.moment import Moment
from studio.pipelines.request import Request

__all__ = ["Reading", "read"]


@dataclass(frozen=True)
class Reading:
    """The prompts of a batch, read.

    Args:
        conditioning: ``(B, L, D)`` and what stands beside it; under guidance the negative prompts' rows stand first.
    """

    conditioning: Conditioning

    def at(self, moment: Moment) -> Conditioning:
        """Returns what holds at one call of the denoiser."""
        return self.conditioning


def read(base: Base, requests: Sequence[Request]) -> Reading:
    """Reads the prompts of a batch, under the blend that acts now.

    Args:
        base: whose text encoders read. requests: the pictures of the batch, which share everything but prompt,
            negative, seed and blend.

    Raises:
        DoesNotFit: a prompt that is too long.
    """
    family, pipe, common = base.family, base.pipe, requests[0]
    conditioning = family.encode_text(pipe, [request.prompt for request in requests], False)
    if common.guidance != 1:
        without = family.encode_text(pipe, [request.negative for request in requests], True)
        conditioning = without.cat(conditioning)
    shot = Shot(size=(common.height, common.width), embedded=common.embedded)
    conditioning = conditioning.to(dtype=pipe.components[family.denoiser].dtype)
    return Reading(family.condition(pipe, conditioning, [shot] * len(conditioning.tokens)))
