"""What a caller asks for: one picture as it is wanted, and how it becomes a request."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.adapters import Strength
from studio.config import listed, own_number
from studio.errors import BadConfig
from studio.families import Base
from studio.given import given_path
from studio.pipelines.blends import BlendLike
from studio.pipelines.pictures import given_picture
from studio.pipelines.prompting.tags import check_text
from studio.pipelines.prompting.wildcards import Wildcards
from studio.pipelines.request import Request
from studio.pipelines.start import Given
from studio.pipelines.upscale import upscale_of

__all__ = ["StartingPictures", "Wanted", "one_per_prompt", "request_of", "seeds_of"]

Picture = str | Path | Image.Image


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One picture that is wanted; what is None is the base's own, as :meth:`ImagePipeline.generate` describes it.

    Args:
        prompt: with its tags.
        seed: from 0 on; None or -1 draws one, which the picture's texts say.
        blend: the adapters that act; None: the current blend. Tags in the prompt win over it.
        normalize: whether its strengths are lowered where its adapters add up; None: they are not.
        negative: what guidance leads away from.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        embedded_guidance: the guidance that some distilled bases take as a number.
        width: pixels.
        height: pixels.
        scheduler: a name, or a diffusers scheduler.
        image: a picture to start from.
        strength: which part of the denoising a given picture goes through, above 0 and at most 1.
        mask: where a given picture is drawn anew.
        upscale: how much larger it is drawn again in a second pass, above 1; None: it is not.
        upscale_strength: which part of the denoising the second pass goes through; None: 0.5.
        upscale_steps: denoising steps of the second pass; None: as many as the first has.
        wildcards: the folder of the files that ``__name__`` in a prompt names.
        resolved: what the prompt and the negative prompt become by their choices; None: they are drawn by the seed.
    """

    prompt: str
    seed: int | None = 0
    blend: BlendLike | str | None = None
    normalize: bool | None = None
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    embedded_guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: Any = None
    image: Picture | None = None
    strength: float | None = None
    mask: Picture | None = None
    upscale: float | None = None
    upscale_strength: float | None = None
    upscale_steps: int | None = None
    wildcards: str | Path | None = None
    resolved: tuple[str, str] | None = None

    def settled(self, wildcards: Callable[[Any], Wildcards] = Wildcards) -> Wanted:
        """Returns the same with a seed, and with what its prompts become.

        Args:
            wildcards: opens a folder of wildcard files.

        Raises:
            BadConfig: a prompt that is no text, or choices in it that cannot be read.
            BadFile: a folder or a file of wildcards that cannot be read. UnknownName: there is no such file.
        """
        seed = own_number(self.seed)
        seed = secrets.randbelow(2**32) if seed is None or seed == -1 else seed
        if self.resolved is not None:
            return dataclasses.replace(self, seed=seed)
        texts = self.prompt, "" if self.negative is None else self.negative
        for text in texts:
            check_text(text)
        folder = wildcards(None if self.wildcards is None else given_path(self.wildcards, "wildcards"))
        prompt, negative = (folder.resolve(text, seed) for text in texts)
        return dataclasses.replace(self, seed=seed, resolved=(prompt, negative))


class StartingPictures:
    """The pictures that a list of wanted ones start from, each opened once.

    Args:
        base: which shall draw.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._held: dict[tuple[Any, ...], Given | None] = {}

    def of(self, wanted: Wanted) -> Given | None:
        """Returns what a picture starts from; None: noise alone.

        Raises:
            BadConfig: an impossible picture to start from. BadFile: one that cannot be read.
        """
        size = (wanted.width, wanted.height)
        pictures = [one if isinstance(one, (str, Path)) else id(one) for one in (wanted.image, wanted.mask)]
        key = (*pictures, repr(size), repr(wanted.strength))  # what they are is checked with the rest
        if key not in self._held:
            self._held[key] = given_picture(self.base, wanted.image, wanted.mask, wanted.strength, size)
        return self._held[key]


def request_of(
    base: Base, wanted: Wanted, *, text: str, negative: str, blend: Mapping[str, Strength] | None, given: Given | None
) -> Request:
    """Returns the request for a wanted picture, with what the base does by itself filled in.

    Args:
        base: which shall draw it. wanted: the picture, with a seed.
        text: the prompt without tags. negative: likewise.
        blend: the adapters that act on it; None: the current blend. given: what it starts from.
    """
    own = base.defaults
    width, height = base.native if given is None else given.image.size
    assert wanted.seed is not None, "it has a seed"
    return Request(
        prompt=text, negative=negative, seed=wanted.seed, blend=blend, given=given, scheduler=wanted.scheduler,
        width=_or(wanted.width, width), height=_or(wanted.height, height), steps=_or(wanted.steps, own.steps),
        guidance=_or(wanted.guidance, own.guidance), embedded=_or(wanted.embedded_guidance, own.embedded),
        upscale=upscale_of(wanted.upscale, wanted.upscale_strength, wanted.upscale_steps),
    )  # fmt: skip


def seeds_of(seeds: Any) -> list[Any]:
    """Returns seeds as a list, numbers of numpy and torch as Python's own; what they are is checked with the rest.

    Args:
        seeds: a number, several, or None for one that is drawn.

    Raises:
        BadConfig: neither.

    Example:
        >>> seeds_of(3), seeds_of(range(2)), seeds_of(None)
        ([3], [0, 1], [None])
    """
    seeds = listed(own_number(seeds))
    if seeds is None or isinstance(seeds, (int, float)):
        return [seeds]
    if isinstance(seeds, (str, bytes, Mapping)) or not isinstance(seeds, Iterable):
        raise BadConfig(f"seeds={seeds!r}: give a whole number from 0 on, or several in a list")
    return [own_number(seed) for seed in seeds]


def one_per_prompt(negative: str | Sequence[str | None] | None, prompts: int) -> list[Any]:
    """Returns the negative prompt of every prompt.

    Args:
        negative: one for all, or one per prompt. prompts: how many there are.

    Raises:
        BadConfig: a list of another length.
    """
    if not isinstance(negative, (list, tuple)):
        return [negative] * prompts
    if len(negative) != prompts:
        raise BadConfig(f"{len(negative)} negative prompts for {prompts} prompts; give one, or one per prompt")
    return list(negative)


def _or(given: Any, own: Any) -> Any:
    """What was given, or else the base's own."""
    return own if given is None else given
