"""Who is told how far a call is, and shown what its pictures look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from studio.config import own_number
from studio.errors import BadConfig
from studio.families import Base
from studio.pipelines.moment import Moment
from studio.pipelines.preview import colours_of, implied
from studio.pipelines.request import Request, is_count

__all__ = ["Told", "Watch"]

Told = Callable[[Moment, Tensor, Tensor], None]
"""Called after each time of the scheduler, with what the denoiser saw ``(B, C, h, w)`` and what it predicted."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Callables of the caller.

    Args:
        on_step: called as ``on_step(done, total)`` after every denoising step, in batch-steps.
        on_preview: called as ``on_preview(done, total, image)`` for every picture of a batch, whose
            ``image.info["index"]`` is the picture's place in the list that was asked for.
        preview_every: steps from one preview to the next.
        before: steps that are done already. behind: steps that come when these are done.
        places: of the requests in the list that was asked for; none: as they stand.

    Raises:
        BadConfig: what cannot be called, or no number of steps.
    """

    on_step: Callable[[int, int], None] | None = None
    on_preview: Callable[[int, int, Image.Image], None] | None = None
    preview_every: int = 1
    before: int = 0
    behind: int = 0
    places: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, call in (("on_step", "done, total"), ("on_preview", "done, total, image")):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise BadConfig(f"{name}={getattr(self, name)!r} is called as {name}({call}), and cannot be called")
        object.__setattr__(self, "preview_every", own_number(self.preview_every))
        if not is_count(self.preview_every):
            raise BadConfig(f"preview_every={self.preview_every!r}: give a whole number of steps from 1 on")

    def over(self, base: Base, requests: Sequence[Request], indices: Sequence[int], done: int, total: int) -> Told:
        """Returns what is called in a batch.

        Args:
            base: which draws it. requests: its pictures, of equal steps. indices: their places.
            done: steps of the batches before it. total: steps of all batches.
        """
        steps, size = requests[0].steps, (requests[0].width, requests[0].height)
        total += self.before + self.behind

        def told(moment: Moment, noisy: Tensor, output: Tensor) -> None:
            step = (moment.number + 1) * steps // moment.of
            now = self.before + done + step
            if self.on_step is not None:
                self.on_step(now, total)
            new = step != moment.number * steps // moment.of  # one of second order calls twice in a step
            if (
                self.on_preview is not None
                and new
                and (step % self.preview_every == 0 or moment.number + 1 == moment.of)
            ):
                colours = colours_of(base)
                for index, latents in zip(indices, implied(base, noisy, output, moment), strict=False):
                    image = colours.picture(latents, size)
                    image.info["index"] = self.places[index] if self.places else index
                    self.on_preview(now, total, image)

        return told
