"""From what is wanted to pictures with their texts: tags are read, requests made, drawn and described."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.adapters import adapters, current_blend
from studio.config import own_number
from studio.errors import BadConfig
from studio.families import Base
from studio.pipelines.asking import StartingPictures, Wanted, request_of
from studio.pipelines.blends import deal_blend
from studio.pipelines.describe import describe
from studio.pipelines.drawing import Drawing
from studio.pipelines.prompt import TaggedPrompt, parse_prompt
from studio.pipelines.remarks import Remark, remarks
from studio.pipelines.request import Request
from studio.pipelines.sample import Picture, sample
from studio.pipelines.sources import Source

__all__ = ["Made", "make", "read_tags"]


@dataclass(frozen=True)
class Made:
    """A picture that was made: its place in the list that was asked for, and the picture with its texts."""

    index: int
    image: Drawing


def make(
    base: Base,
    sources: Mapping[str, Source],
    wanted: Sequence[Wanted],
    *,
    batch_size: int | None = None,
    attention: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Made]:
    """Makes pictures; all is checked before the first is drawn.

    Args:
        base: which draws. sources: the files of the adapters on it, by name.
        wanted: the pictures.
        batch_size: images that are computed together; None: 1.
        attention: by what the denoiser's attention is computed; None: as the base was opened.
        on_step: called as ``on_step(done, total)`` after every denoising step.

    Yields:
        The pictures as they come, each with its place in ``wanted``.

    Raises:
        UnknownName: see :meth:`ImagePipeline.generate`. BadConfig: see there. BadFile: see there.
        DoesNotFit: see there. StudioError: see there.
    """
    wanted = [one.seeded() for one in wanted]
    base = base.sparing(**({} if attention is None else {"attention": attention}))
    requests = _requests(base, wanted)
    said = [
        remark
        for one, request in zip(wanted, requests, strict=True)
        for remark in remarks([one.prompt], negative=one.negative, guidance=request.guidance)
    ]
    for remark in dict.fromkeys(said):
        warnings.warn(remark, Remark, stacklevel=4)
    rows = 1 if batch_size is None else own_number(batch_size)
    made = sample(base, requests, rows=rows, on_step=on_step)
    return _described(base, sources, wanted, requests, rows, made)


def _described(
    base: Base,
    sources: Mapping[str, Source],
    wanted: Sequence[Wanted],
    requests: Sequence[Request],
    rows: int,
    made: Iterator[Picture],
) -> Iterator[Made]:
    for picture in made:
        asked, request = wanted[picture.index], requests[picture.index]
        texts = describe(
            base, sources, request, picture.sampler, rows=rows, prompt=asked.prompt, negative=asked.negative or ""
        )  # fmt: skip
        yield Made(picture.index, Drawing.of(picture.image, texts))


def _requests(base: Base, wanted: Sequence[Wanted]) -> list[Request]:
    read, current = functools.cache(functools.partial(read_tags, base)), current_blend(base.pipe)
    starts, requests = StartingPictures(base), []
    for one in wanted:
        tagged, away = read(one.prompt), _read_negative(base, one.negative)
        (blend,) = deal_blend(one.blend, [tagged.blend], current)
        given = starts.of(one)
        requests.append(request_of(base, one, text=tagged.text, negative=away, blend=blend, given=given))
    return requests


def read_tags(base: Base, prompt: Any) -> TaggedPrompt:
    """Takes the adapter tags out of a prompt.

    Args:
        base: on which the adapters are. prompt: as it was written.

    Raises:
        UnknownName: a tag names an adapter that is not loaded.
        BadConfig: a tag that cannot be read, or what is no text.
    """
    family, here = base.family, adapters(base.pipe)
    sites = [site for info in here.values() for site in info.sites]
    encoders = [name for name in family.readers if any(site.startswith(f"{name}.") for site in sites)]
    return parse_prompt(prompt, here, denoiser=family.denoiser, encoders=encoders)


def _read_negative(base: Base, negative: str | None) -> str:
    away = read_tags(base, "" if negative is None else negative)
    if away.blend is not None:
        raise BadConfig(f"the negative prompt {negative!r} has a tag, and tags belong into the prompt; take it out")
    return away.text
