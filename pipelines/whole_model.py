"""A base with a blend folded into its weights, written as a folder of its own and proven by what comes of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from PIL import Image
from torch import Tensor

from studio.adapters import bake, blended, current_blend, unbake
from studio.adapters.contract.strength import StrengthLike
from studio.atomic import atomic_folder, atomic_write
from studio.errors import BadFile, NoEffect, Refused
from studio.families import Base, components, open_base
from studio.families.language import LanguageBase, open_language_base
from studio.families.language.seeing import joined
from studio.families.quiet import quietly
from studio.given import given_path
from studio.pipelines.hearing import heard_of
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from studio.pipelines.seeing import seen_of_picture
from studio.quantization.layers import in_dense_layers
from studio.sounds import Sound

__all__ = ["write_whole_model"]

_PROMPT = "a photo"
_STEPS = 2
_TOKENS = 16
_SAMPLES, _RATE = 800, 8_000
_NEAR: Final = 1e-4  # of the largest logit, where fp32 computes


@dataclass(frozen=True)
class _Way:
    """How a sort of base is written and proven.

    Attributes:
        model: what carries the adapters. probe: what comes of a base, as one tensor. write: writes it to a folder.
        again: opens a folder. most: how far what comes of it may be off. does: what it does, in messages.
    """

    model: Any
    probe: Callable[[Any], Tensor]
    write: Callable[[Path], None]
    again: Callable[[Path], Any]
    most: float
    does: str


def write_whole_model(
    base: Base | LanguageBase, folder: str | Path, blend: Mapping[str, StrengthLike] | str | None = None
) -> tuple[Path, float]:
    """Bakes a blend, writes the whole base as a folder, opens it and compares what comes of both.

    A base that draws is written as diffusers reads it and draws a picture; a language model as transformers reads it,
    with its tokenizer, its chat template and its settings for writing, and gives the logits of a few tokens (an encoder
    their states, a model that hears or sees those behind a sound or a picture).

    Args:
        base: with the adapters on it; its own bits come back afterwards.
        folder: where to; it must not be there.
        blend: what is folded in; None: the current blend.

    Returns:
        The folder, and the largest difference between the two: of a pixel, in [0, 2], or of a logit, as a part of the
        largest one.

    Raises:
        BadFile: nothing can be written there, or something is there. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked already, weights are offloaded, or a strength that differs by sample, moment or
            place. NoEffect: the folder would do what the base does. Refused: it does something else than the blend.
    """
    place, way = given_path(folder), _writing(base) if isinstance(base, LanguageBase) else _drawing(base)
    if place.exists():
        raise BadFile(f"{place} is there already; choose another folder")
    strengths = current_blend(way.model) if blend is None else blend
    with blended(way.model, {}):
        plain = way.probe(base)
    bake(way.model, strengths)
    try:
        wanted = way.probe(base)
        if torch.equal(plain, wanted):
            raise NoEffect(
                f"the blend changes nothing that is {way.does}, so the folder would be the base: name adapters"
            )
        with atomic_folder(place) as temporary:
            with in_dense_layers(components(way.model).values()):
                way.write(temporary)
            apart = float((way.probe(way.again(temporary)) - wanted).abs().max())
            if not apart <= way.most:
                raise Refused(
                    f"what was written is not what was to be {way.does} (off by {apart:.3g}); nothing is kept"
                )
    finally:
        unbake(way.model)
    return place, apart


def _drawing(base: Base) -> _Way:
    def write(folder: Path) -> None:
        with quietly():
            base.pipe.save_pretrained(folder, safe_serialization=True)

    def again(folder: Path) -> Base:
        return open_base(str(folder), dtype=base.pipe.components[base.family.denoiser].dtype)

    return _Way(base.pipe, _pixels, write, again, 1 / 255, "drawn")


def _pixels(base: Base) -> Tensor:
    """Pixels of one small picture, ``(1, 3, H, W)`` in [-1, 1]."""
    own, unit = base.defaults, base.multiple
    side = min(*base.native, max(unit, 64 // unit * unit))
    request = Request(
        prompt=_PROMPT, width=side, height=side, steps=_STEPS, guidance=1.0, embedded=own.embedded, blend=None
    )
    return draw(base, [request], rows=1)[0].cpu()


def _writing(base: LanguageBase) -> _Way:
    model = base.model

    def write(folder: Path) -> None:
        with _told_apart(model), quietly():
            model.save_pretrained(folder)
            (base.tokenizer if base.processor is None else base.processor).save_pretrained(folder)
        _tell_positions(folder / "config.json")

    def again(folder: Path) -> LanguageBase:
        return open_language_base(str(folder), kind=base.kind.name, dtype=model.dtype, device=model.device)

    return _Way(model, _logits, write, again, max(_NEAR, 4 * torch.finfo(model.dtype).eps), "written")


def _tell_positions(file: Path) -> None:
    """Says at the top of a config how positions turn, where programs look that do not know transformers 5's place.

    Args:
        file: the config, in which ``rope_parameters`` may hold ``rope_theta`` and what else it says of them.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    said = config.get("rope_parameters") or {}
    if "rope_theta" not in said:  # there are none, or they differ by layer, which those programs read at this place
        return
    more = {key: value for key, value in said.items() if key != "rope_theta"}
    scaled = {"rope_scaling": more} if more.get("rope_type", "default") != "default" else {}
    config = {"rope_theta": said["rope_theta"], **scaled, **config}
    atomic_write(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


@torch.no_grad()
def _logits(base: LanguageBase) -> Tensor:
    """What a language model makes of its first tokens, ``(1, L, …)``, as a part of the largest number."""
    found: Tensor = base.model(**_read(base))[0].float().cpu()
    return found / found.abs().max().clamp_min(torch.finfo(found.dtype).tiny)


def _read(base: LanguageBase) -> Mapping[str, Tensor]:
    """What a language model of its kind reads: tokens, a short sound, or a small picture."""
    model = base.model
    tokens = torch.arange(min(_TOKENS, base.context, len(base.tokenizer)), device=model.device)[None]
    if base.kind.name == "vision":
        return joined(base, [seen_of_picture(base, Image.linear_gradient("L"), "")], [()], left=True)
    if base.kind.name == "speech":
        heard = heard_of(base, Sound(numpy.linspace(-1, 1, _SAMPLES, dtype=numpy.float32), _RATE))[None]
        return {"input_features": heard.to(model.device, model.dtype), "decoder_input_ids": tokens}
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **more}


@contextlib.contextmanager
def _told_apart(model: Any) -> Iterator[None]:
    """Lets the config say that head and embedding are two, where one of them alone was changed."""
    head, config = model.get_output_embeddings(), model.config
    was = config.tie_word_embeddings
    try:
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            config.tie_word_embeddings = False
        yield
    finally:
        config.tie_word_embeddings = was
