"""The trainers' own lesson on a diffusion base that is a blueprint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families import Base, Conditioning
from studio.families.family import Encoder, Family
from studio.families.quiet import quietly
from studio.families.surroundings import SURROUNDINGS
from studio.planning.blueprint import Blueprint
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.stage import Scene, Stuff
from studio.trainers.forecast.still import Blank, Still, item
from studio.trainers.image.diffusion import Diffusion, Previews
from studio.trainers.image.latents import Latents, picture_size
from studio.trainers.image.objective import Objective
from studio.trainers.image.prior import Prior
from studio.trainers.image.prompts import Prompts
from studio.trainers.recipes import ImageRecipe, recipe_for

__all__ = ["image_scene"]

_CAPTION, _CLASS = "a photo of sks dog", "a photo of dog"


def image_scene(drawn: Blueprint, asked: Asked, stuff: Stuff) -> Scene:
    """Returns what a training on pictures plays.

    Args:
        drawn: the base. asked: the settings, all filled. stuff: what tensors are made of.

    Raises:
        DoesNotFit: sides that the base cannot have, or text encoders that are not trained.
    """
    family = drawn.family
    assert family is not None, "an image base"
    dtype = asked.type_of(drawn.dtype)
    with quietly():  # diffusers speaks of numbers that it would lose
        for name in (family.denoiser, *family.readers, "vae"):
            if name in drawn.components:
                drawn.components[name].to(dtype).requires_grad_(False)
    if family.chunks:  # else the encoders are called without a tokenizer
        drawn = replace(drawn, components={**drawn.components, **_tokenizers(drawn, family)})
    base = Base(drawn, family, drawn.name, family.native(drawn), defaults=family.defaults(drawn))
    recipe = recipe_for(asked.task or "dreambooth", base)
    assert isinstance(recipe, ImageRecipe), "of an image base"
    size = picture_size(asked.resolution, base)
    encoders = _trained(base, asked, recipe)
    lesson = _lesson(base, asked, recipe, size, encoders, stuff)
    beside = {name: drawn.components[name] for name in (*family.readers, "vae") if name in drawn.components}
    return Scene(
        lesson, beside, _resident(family, encoders, asked, beside), _caching(base, size, stuff),
        _drawing(base, size, asked, stuff) if asked.previews else None, asked.whole,
        {"width": size[0], "height": size[1], "native": min(base.native)},
    )  # fmt: skip


def _resident(family: Family, encoders: Sequence[str], asked: Asked, beside: Iterable[str]) -> tuple[str, ...]:
    """What stays on the device, as in a run: all encoders where one is trained, and what encodes each draw."""
    live = {*(family.readers if encoders else ()), *(("vae",) if asked.crop == "random" else ())}
    return tuple(name for name in beside if not asked.cached or name in live)


def _trained(base: Base, asked: Asked, recipe: ImageRecipe) -> list[str]:
    wanted = recipe.text_encoder if asked.text_encoder is None else asked.text_encoder
    trained = [one.component for one in base.family.encoders if one.trained] if wanted else []
    if wanted and not trained:
        raise DoesNotFit(f"text_encoder=True: the text encoder of {base.family.title} is not trained with its pictures")
    return trained


def _lesson(
    base: Base, asked: Asked, recipe: ImageRecipe, size: tuple[int, int], encoders: list[str], stuff: Stuff
) -> Diffusion:
    family = base.family
    cells = size[1] // base.downscale, size[0] // base.downscale
    nothing: Any = None  # no cache is asked: what it would give is there already
    latents = Latents(base, [item(size)], size=size, crop="center", flip=False, cache=nothing)
    latents._made[0, False] = stuff.tensor((family.channels(base.pipe), *cells))
    prompts = Prompts(base, nothing)
    said = _conditioning(base, asked, stuff)
    prompts._encoded |= {_CAPTION: said, _CLASS: said}
    shift = family.shift(base.pipe, cells) if recipe.shifted else 1.0
    lesson = _Played(
        base=base, adapter=asked.config(recipe), name="forecast", plan=asked.loop(recipe),
        rates=dict.fromkeys([family.denoiser, *encoders], recipe.learning_rate), settings={}, recorded={}, inputs={},
        origin={}, latents=latents, captions_of=[_CAPTION], prior=_prior(asked, recipe, latents), prompts=prompts,
        objective=Objective(
            process=family.process.of(base.pipe.scheduler, torch.device("cpu")), weighting=recipe.weighting,
            density=recipe.density, shift=shift,
        ),
        previews=Previews((), (), size, 1, 1.0),
    )  # fmt: skip
    lesson.draws = Still(0)
    return lesson


def _prior(asked: Asked, recipe: ImageRecipe, latents: Latents) -> Prior | None:
    if asked.prior in (None, "none"):
        return None
    rows = asked.rows if recipe.prior_rows is None else recipe.prior_rows
    own = asked.prior == "self"
    return Prior(lambda: latents, (_CLASS,), recipe.prior_weight, own, Still(0), rows, asked.rows)


class _Played(Diffusion):
    """The lesson, but for what it reads of texts where an encoder is trained without its tokenizer."""

    def _captions(self, numbers: Any) -> Conditioning:
        if not self.trains_text or self.base.family.chunks:
            return super()._captions(numbers)
        said = self.prompts.frozen([_CAPTION] * len(numbers))
        pooled, tokens = said.pooled, said.tokens
        for name in self.rates:
            if name in self.base.family.readers:
                ids = torch.zeros(len(numbers), _places(self.model, self._reader(name)), dtype=torch.int64)
                hint = self.model.components[name](input_ids=ids)[0].sum() * 0
                tokens = tokens + hint.to(tokens.dtype)
        return Conditioning(tokens, pooled, said.extra, said.mask)

    def _reader(self, name: str) -> Encoder:
        return next(one for one in self.base.family.encoders if one.component == name)


def _conditioning(base: Base, asked: Asked, stuff: Stuff) -> Conditioning:
    """An encoded prompt, with every token counting where a mask says which do."""
    family, denoiser = base.family, base.pipe.components[base.family.denoiser]
    length = asked.length
    if length is None and family.chunks:
        length = _places(base.pipe, family.encoders[0])
    said = SURROUNDINGS[family.name].says(denoiser.config, length)
    dtype = next(denoiser.parameters()).dtype
    pooled = stuff.tensor((1, said.pooled), dtype) if said.pooled else None
    with stuff.entered():
        mask = torch.ones(1, said.tokens[0], dtype=torch.bool) if said.masked else None
    return Conditioning(stuff.tensor((1, *said.tokens), dtype), pooled, {}, mask)


def _caching(base: Base, size: tuple[int, int], stuff: Stuff) -> Callable[[], None]:
    """Encodes one picture and one prompt, by every encoder, as a run does before its first step."""
    family, pipe = base.family, base.pipe
    pixels = stuff.tensor((1, 3, size[1], size[0]))

    def cache() -> None:
        family.encode_image(pipe, pixels, None)
        for one in family.encoders:
            encoder = pipe.components.get(one.component)
            if encoder is not None:
                encoder(input_ids=torch.zeros(1, _places(pipe, one), dtype=torch.int64))

    return cache


def _drawing(base: Base, size: tuple[int, int], asked: Asked, stuff: Stuff) -> Callable[[], None]:
    """Does one step of a preview, with guidance where the base draws with it, and decodes the picture."""
    family, pipe = base.family, base.pipe
    rows = 2 if base.defaults.negative and base.guidance != 1 else 1
    dtype = next(pipe.components[family.denoiser].parameters()).dtype
    cells = family.channels(pipe), size[1] // base.downscale, size[0] // base.downscale
    noisy, times = stuff.tensor((rows, *cells), dtype), stuff.tensor((rows,))
    said = _conditioning(base, asked, stuff)

    def draw() -> None:
        from studio.families import Shot

        shots = [Shot(size=size[::-1], embedded=base.defaults.embedded)] * rows
        rows_said: Any = said if rows == 1 else said.cat(said)
        out: Tensor = family.predict(pipe, noisy, times, family.condition(pipe, rows_said, shots))
        family.decode(pipe, out[:1])

    return draw


def _tokenizers(drawn: Blueprint, family: Family) -> dict[str, Any]:
    """What stands in for the tokenizers of a family that is read in chunks."""
    return {one.tokenizer: Blank(_places(drawn, one)) for one in family.encoders}


def _places(pipe: Blueprint, encoder: Encoder) -> int:
    """How many tokens a text encoder is given: a CLIP as many as it has places, others what the denoiser reads."""
    family = pipe.family
    assert family is not None, "an image base"
    if encoder.label.startswith("clip"):
        config: Any = pipe.components[encoder.component].config
        return int(config.max_position_embeddings)
    return SURROUNDINGS[family.name].says(pipe.components[family.denoiser].config, None).tokens[0]
