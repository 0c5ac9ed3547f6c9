"""What the prompts of a batch say to the denoiser, step by step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from studio.adapters import When, scheduled
from studio.families import Base, Conditioning, Shot
from studio.families.attention import aside
from studio.families.words import Words
from studio.pipelines.encoding import encoded
from studio.pipelines.moment import Moment
from studio.pipelines.prompting.spoken import spoken
from studio.pipelines.regions import regions_of
from studio.pipelines.request import Request

__all__ = ["Reading"]


class Reading:
    """What the prompts of a batch say, read under the blend that acts, and anew where that changes for the encoders.

    Args:
        base: whose text encoders read.
        requests: the pictures of the batch, which share everything but prompt, negative, seed and blend.
    """

    def __init__(self, base: Base, requests: Sequence[Request]) -> None:
        self.base, self.requests = base, requests
        self.spoken = [spoken(base, request) for request in requests]
        self.regions = regions_of(base, requests[0])
        self._held: dict[object, Conditioning] = {}

    def at(self, moment: Moment) -> Conditioning:
        """Returns what holds at one call of the denoiser; under guidance the negative prompts' rows stand first.

        Args:
            moment: where the pipeline stands, its strengths included.

        Raises:
            DoesNotFit: a prompt that is too long.
        """
        prompts = self._said(moment, negative=False)
        away = self._said(moment, negative=True) if self.requests[0].guidance != 1 else ()
        strengths = scheduled(self.base.pipe, self.base.family.readers, When(moment.progress, moment.noise))
        key = (strengths, prompts, away)
        if key not in self._held:
            with aside():  # what was asked for is how the denoiser attends
                self._held[key] = self._read(prompts, away)
        if self.regions is not None:
            self.regions.place(self._held[key])
        return self._held[key]

    def _said(self, moment: Moment, *, negative: bool) -> tuple[Words, ...]:
        """What is said then; a scheduler that calls the denoiser twice in a step says the same in both."""
        steps = self.spoken[0].steps
        step = min(moment.number * steps // moment.of, steps - 1)
        return tuple(one.at(step, negative=negative) for one in self.spoken)

    def _read(self, prompts: Sequence[Words], away: Sequence[Words]) -> Conditioning:
        family, pipe, common = self.base.family, self.base.pipe, self.requests[0]
        read = functools.partial(_encoded, self.base, prompts, away)
        conditioning = read() if self.regions is None else self.regions.read(pipe, read)
        shot = Shot(size=(common.height, common.width), embedded=common.embedded)
        conditioning = conditioning.to(dtype=pipe.components[family.denoiser].dtype)
        return family.condition(pipe, conditioning, [shot] * len(conditioning.tokens))


def _encoded(base: Base, prompts: Sequence[Words], away: Sequence[Words]) -> Conditioning:
    conditioning = encoded(base, prompts, False)
    return encoded(base, away, True).cat(conditioning) if away else conditioning
