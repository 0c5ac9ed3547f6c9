"""From what is wanted to pictures with their texts: tags are read, requests made, drawn and described."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from studio.adapters import adapters, block_weights, current_blend, read_strength
from studio.config import own_number
from studio.errors import BadConfig
from studio.families import Base
from studio.families.vocabulary import asked_for, escaped
from studio.pipelines.asking import StartingPictures, Wanted, request_of
from studio.pipelines.baking import baking
from studio.pipelines.blends import deal_blend
from studio.pipelines.burning import Holder, burn_remarks
from studio.pipelines.describe import describe
from studio.pipelines.drawing import Drawing
from studio.pipelines.prompting.tags import TaggedPrompt, check_changes, check_text, parse_prompt
from studio.pipelines.prompting.wildcards import Wildcards
from studio.pipelines.remarks import Remark, remarks
from studio.pipelines.request import Request
from studio.pipelines.sample import Picture
from studio.pipelines.second_pass import draw_twice
from studio.pipelines.sources import Source
from studio.pipelines.watching import Watch

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
    bake: bool | str = False,
    attention: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_preview: Callable[[int, int, Image.Image], None] | None = None,
    preview_every: int = 1,
) -> Iterator[Made]:
    """Makes pictures; all is checked before the first is drawn.

    Args:
        base: which draws. sources: the files of the adapters on it, by name.
        wanted: the pictures.
        batch_size: images that are computed together; None: 1.
        bake: whether blends are folded into the weights meanwhile: see :func:`~studio.pipelines.baking.baking`.
        attention: by what the denoiser's attention is computed; None: as the base was opened.
        on_step: called as ``on_step(done, total)`` after every denoising step.
        on_preview: called as ``on_preview(done, total, image)`` with what a picture looks like by now.
        preview_every: steps from one preview to the next.

    Yields:
        The pictures as they come, each with its place in ``wanted``.

    Raises:
        UnknownName: see :meth:`ImagePipeline.generate`. BadConfig: see there. BadFile: see there.
        DoesNotFit: see there. StudioError: see there.
    """
    folder = functools.cache(Wildcards)
    wanted = [one.settled(folder) for one in wanted]
    base = base.sparing(**({} if attention is None else {"attention": attention}))
    rows = 1 if batch_size is None else own_number(batch_size)
    requests = baking(base, _requests(base, wanted), bake, rows)
    watch = Watch(on_step=on_step, on_preview=on_preview, preview_every=preview_every)
    made = draw_twice(base, requests, rows=rows, watch=watch)
    said = [
        remark
        for request in requests
        for remark in remarks(
            [request.prompt], negative=request.negative, guidance=request.guidance, family=base.family,
            steps=request.steps,
        )
    ]  # fmt: skip
    for remark in dict.fromkeys([*said, *_burning(base, requests)]):
        warnings.warn(remark, Remark, stacklevel=4)
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
        assert asked.resolved is not None, "make has settled it"
        texts = describe(
            base, sources, request, picture.sampler, rows=rows, prompt=asked.prompt, negative=asked.negative or "",
            resolved=asked.resolved,
        )  # fmt: skip
        yield Made(picture.index, Drawing.of(picture.image, texts))


def _burning(base: Base, requests: Sequence[Request]) -> list[str]:
    by_steps: dict[int, list[Mapping[str, Any] | None]] = {}
    for request in requests:
        by_steps.setdefault(request.steps, []).append(request.blend)
    return [said for steps, blends in by_steps.items() for said in burn_remarks(base, blends, steps=steps)]


def _requests(base: Base, wanted: Sequence[Wanted]) -> list[Request]:
    read, current = functools.cache(functools.partial(read_tags, base)), current_blend(base.pipe)
    strength = functools.partial(read_strength, base.pipe)
    starts, holder, requests = StartingPictures(base), Holder(base), list[Request]()
    for one in wanted:
        assert one.resolved is not None, "make has settled it"
        tagged, away = read(one.resolved[0]), _read_negative(base, one.resolved[1])
        (blend,) = deal_blend(one.blend, [tagged.blend], current, read=strength)
        blend = holder.held(blend) if one.normalize else blend
        given = starts.of(one)
        requests.append(request_of(base, one, text=tagged.text, negative=away, blend=blend, given=given))
    return requests


def read_tags(base: Base, prompt: Any) -> TaggedPrompt:
    """Takes the adapter tags out of a prompt.

    Args:
        base: on which the adapters are. prompt: as it was written.

    Raises:
        UnknownName: a tag names an adapter that is not loaded, or ``embedding:name`` a word that is not.
        BadConfig: a tag that cannot be read, or what is no text.
    """
    check_text(prompt)
    prompt = escaped(base.pipe, prompt)
    family, here = base.family, adapters(base.pipe)
    sites = [site for info in here.values() for site in info.sites]
    encoders = [name for name in family.readers if any(site.startswith(f"{name}.") for site in sites)]
    blocks = functools.partial(block_weights, base.pipe)
    read = parse_prompt(prompt, here, denoiser=family.denoiser, encoders=encoders, blocks=blocks)
    check_changes(prompt, emphasis=family.emphasis)
    asked_for(base.pipe, prompt)
    return read


def _read_negative(base: Base, negative: str) -> str:
    away = read_tags(base, negative)
    if away.blend is not None:
        raise BadConfig(f"the negative prompt {negative!r} has a tag, and tags belong into the prompt; take it out")
    return away.text
