"""The image pipeline: a base, the adapters on it, and pictures from prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

import studio.adapters as core
from studio.errors import BadConfig
from studio.families import Base, open_base
from studio.pipelines.asking import Wanted, one_per_prompt, seeds_of
from studio.pipelines.blends import BlendLike, deal_blend
from studio.pipelines.fit import check_fit
from studio.pipelines.making import Made, make
from studio.pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    from studio.files import AdapterFile
    from studio.quantization.wishes import Wishes

__all__ = ["ImagePipeline", "Made"]

AnyImagePipeline = TypeVar("AnyImagePipeline", bound="ImagePipeline")


class ImagePipeline(Pipeline):
    """Pictures from prompts, with any number of adapters.

    The adapters live in the modules of the diffusers pipeline (``.pipe``), so whatever else uses these modules (an
    img2img pipeline, a trainer) sees the same adapters.

    Args:
        base: an opened base; :meth:`open` opens one.

    Attributes:
        base: the base.
        pipe: its diffusers pipeline.
        sources: the file of every adapter that :meth:`load` loaded, by name; pictures state it.

    Example:
        >>> pipe = ImagePipeline.open("emoji")
        >>> image, = pipe.generate("tiger on a blue background", seeds=3, steps=4)
        >>> image.size, image.info["parameters"].splitlines()[0]
        ((64, 64), 'tiger on a blue background')
    """

    base: Base
    _open_base = staticmethod(open_base)

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.pipe = base.pipe

    @classmethod
    def open(
        cls: type[AnyImagePipeline],
        base: str | Path | Any,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        config_of: str | Path | None = None,
        offline: bool = False,
        offload: str | None = None,
        attention: str | None = None,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
        quantize: Wishes | None = None,
    ) -> AnyImagePipeline:
        """Opens a base; as :func:`studio.families.open_base`, which lists what it takes and raises.

        Args:
            base: a name, a diffusers folder, a checkpoint of one file, a hub id, or an object.
            dtype: the weights' type. device: where to.
            config_of: for a checkpoint of one file, the folder or the hub id whose configs it is opened with.
            offline: never ask the hub.
            offload: where weights rest while they do not compute: ``"none"``, ``"model"``, ``"group"`` or
                ``"sequential"``, each with less on the accelerator and slower than the one before it; ``device`` is
                then where they compute. Model and sequential need an accelerator.
            attention: by what the denoiser's attention is computed: ``"sdpa"`` (torch's own, what ``None`` takes),
                ``"sliced"`` (least memory), ``"flash"`` or ``"xformers"``. Nothing is set on the model for it.
            vae_tiling: the autoencoder takes a picture in overlapping tiles, which changes large ones a little.
            vae_slicing: the autoencoder takes the pictures of a batch one by one.
            quantize: which components are kept in fewer bits, and how: ``"nf4"`` for the denoiser,
                ``"text_encoder_2=int8"`` for another one.

        Raises:
            UnknownName: neither a known name nor a path nor an id that the hub has, or no such type, attention, way to
                offload or to quantise.
            BadFile: what is there is not a whole base.
            DoesNotFit: a base of a family that the studio does not know, or a device that cannot do this.
        """
        opened = open_base(
            base, dtype=dtype, device=device, config_of=config_of, offline=offline, offload=offload, quantize=quantize
        )  # fmt: skip
        given = {"attention": attention, "vae_tiling": vae_tiling or None, "vae_slicing": vae_slicing or None}
        return cls(opened.sparing(**{name: value for name, value in given.items() if value is not None}))

    @property
    def carrier(self) -> Any:
        """The diffusers pipeline."""
        return self.pipe

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        normalize: bool = False,
        seeds: int | Sequence[int | None] | None = (0,),
        steps: int | None = None,
        guidance: float | None = None,
        embedded_guidance: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        bake: bool | str = False,
        scheduler: str | Any | None = None,
        image: str | Path | Image.Image | None = None,
        strength: float | None = None,
        mask: str | Path | Image.Image | None = None,
        upscale: float | None = None,
        upscale_strength: float | None = None,
        upscale_steps: int | None = None,
        wildcards: str | Path | None = None,
        attention: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_preview: Callable[[int, int, Image.Image], None] | None = None,
        preview_every: int = 1,
    ) -> list[Image.Image]:
        """Makes pictures: every prompt with every seed, prompt-major.

        Args:
            prompt: one or several; ``<name:0.8>`` in a prompt says which adapters act on its pictures, in place of
                ``blend``; ``(word:1.2)`` counts more, ``[a:b:0.5]`` and ``[a|b]`` change while it denoises, and
                ``{a|b}`` and ``__file__`` are drawn for each picture (docs/prompts.md has all forms).
            blend: ``None``: the current blend; a dict; the name of one adapter; or one dict per picture. A list of
                numbers as a strength has one entry per picture.
            normalize: whether strengths are lowered where adapters add up, so that 1.0 + 1.0 does not burn
                (:func:`studio.normalized`); the pictures' texts hold the strengths that acted.
            seeds: whole numbers from 0 on; None or -1 draws one, which the picture's texts say.
            steps: denoising steps; ``None``: the base's own.
            guidance: scale of classifier-free guidance; 1 is the prompt alone. ``None``: the base's own.
            embedded_guidance: the guidance that some distilled bases (Flux dev) take as a number instead; ``None``: the
                base's own.
            negative: what guidance leads away from; one for all prompts, or one per prompt.
            width: pixels; ``None``: the base's own.
            height: pixels; ``None``: the base's own.
            batch_size: images that are computed together, recorded as ``rows``; ``None``: 1. Pictures made with equal
                rows are equal to the bit; those made with others agree within 1/255 per pixel.
            bake: True folds each blend into the weights while its pictures are drawn, and the base has its bits back
                afterwards; "auto" does so where that saves time. It never happens by itself: the last bits are others.
            scheduler: a name of :data:`SCHEDULERS`, a diffusers scheduler, or ``None`` for the base's own.
            image: a picture to start from instead of noise alone; it is scaled until it covers the size and cropped.
            strength: which part of the denoising it goes through, above 0 and at most 1; ``None``: 0.6.
            mask: where it is drawn anew (white); elsewhere it stays as it is.
            upscale: how much larger the picture is drawn again, above 1: it is scaled up and redrawn in a second pass.
            upscale_strength: which part of the denoising the second pass goes through; ``None``: 0.5.
            upscale_steps: denoising steps of the second pass; ``None``: as many as the first has.
            wildcards: the folder of the text files that ``__name__`` in a prompt names.
            attention: by what the denoiser's attention is computed in this call, as :meth:`open` has it; ``None``: as
                the base was opened.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            on_preview: called as ``on_preview(done, total, image)`` with what a picture looks like by now, whose place
                in the list is ``image.info["index"]``; it changes no bit of what is drawn.
            preview_every: steps from one preview to the next.

        Returns:
            The pictures, each with ``.info["parameters"]`` (A1111's text) and ``.info["studio"]`` (JSON that makes it
            again: :func:`studio.pipelines.regenerate`); both are in a PNG that ``.save("x.png")`` writes. A
            :class:`~studio.pipelines.remarks.Remark` is a warning of what has no effect: weights for a family that does
            not weigh words, a negative prompt without guidance.

        Raises:
            UnknownName: an adapter, scheduler or attention that is not there; the nearest is named.
            BadConfig: an impossible number, a malformed tag, brackets that nothing closes, or lists whose lengths do
                not fit.
            BadFile: a picture to start from or a wildcard file that cannot be read.
            DoesNotFit: a prompt that is too long, or a scheduler or base that cannot do this.
            StudioError: the model gave no finite numbers.
        """
        made = self.generate_iter(
            prompt, blend=blend, normalize=normalize, seeds=seeds, steps=steps, guidance=guidance,
            embedded_guidance=embedded_guidance, negative=negative, width=width, height=height, bake=bake,
            batch_size=batch_size, scheduler=scheduler, image=image, strength=strength, mask=mask, upscale=upscale,
            upscale_strength=upscale_strength,
            upscale_steps=upscale_steps, wildcards=wildcards, attention=attention, on_step=on_step,
            on_preview=on_preview, preview_every=preview_every,
        )  # fmt: skip
        return [one.image for one in sorted(made, key=lambda one: one.index)]

    def generate_iter(
        self,
        prompt: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        normalize: bool = False,
        seeds: int | Sequence[int | None] | None = (0,),
        steps: int | None = None,
        guidance: float | None = None,
        embedded_guidance: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        bake: bool | str = False,
        scheduler: str | Any | None = None,
        image: str | Path | Image.Image | None = None,
        strength: float | None = None,
        mask: str | Path | Image.Image | None = None,
        upscale: float | None = None,
        upscale_strength: float | None = None,
        upscale_steps: int | None = None,
        wildcards: str | Path | None = None,
        attention: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_preview: Callable[[int, int, Image.Image], None] | None = None,
        preview_every: int = 1,
    ) -> Iterator[Made]:
        """As :meth:`generate`, but yields every picture as soon as it is there; all is checked before the first.

        Yields:
            The pictures, each with its place in the list that :meth:`generate` returns.

        Raises:
            UnknownName: see :meth:`generate`. BadConfig: see there. BadFile: see there. DoesNotFit: see there.
            StudioError: see there.

        Example:
            >>> pipe = ImagePipeline.open("emoji")
            >>> [made.index for made in pipe.generate_iter("tiger", seeds=[0, 1], steps=2)]
            [0, 1]
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        each = seeds_of(seeds)
        if not prompts or not each:
            raise BadConfig(f"{len(prompts)} prompts and {len(each)} seeds make no picture; give at least one of each")
        away = one_per_prompt(negative, len(prompts))
        written = [(text, other, seed) for text, other in zip(prompts, away, strict=True) for seed in each]
        read = functools.partial(core.read_strength, self.pipe)
        blends = deal_blend(blend, [None] * len(written), core.current_blend(self.pipe), read=read)
        wanted = [
            Wanted(
                prompt=text, seed=seed, blend=acting, normalize=normalize, negative=other, steps=steps,
                guidance=guidance, width=width,
                embedded_guidance=embedded_guidance, height=height, scheduler=scheduler, image=image,
                strength=strength, mask=mask, upscale=upscale, upscale_strength=upscale_strength,
                upscale_steps=upscale_steps, wildcards=wildcards,
            )
            for (text, other, seed), acting in zip(written, blends, strict=True)
        ]  # fmt: skip
        return self.make(
            wanted, batch_size=batch_size, bake=bake, attention=attention, on_step=on_step, on_preview=on_preview,
            preview_every=preview_every,
        )  # fmt: skip

    def make(
        self,
        wanted: Sequence[Wanted],
        *,
        batch_size: int | None = None,
        bake: bool | str = False,
        attention: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_preview: Callable[[int, int, Image.Image], None] | None = None,
        preview_every: int = 1,
    ) -> Iterator[Made]:
        """Makes pictures that may differ in everything; those that can be computed together are.

        Args:
            wanted: the pictures.
            batch_size: images that are computed together; see :meth:`generate`. bake: see there.
            attention: see :meth:`generate`. on_step: see there. on_preview: see there. preview_every: see there.

        Yields:
            The pictures as they come, each with its place in ``wanted``; all is checked before the first.

        Raises:
            UnknownName: see :meth:`generate`. BadConfig: see there. BadFile: see there. DoesNotFit: see there.
            StudioError: see there.
        """
        return make(
            self.base, self.sources, wanted, batch_size=batch_size, bake=bake, attention=attention, on_step=on_step,
            on_preview=on_preview, preview_every=preview_every,
        )  # fmt: skip

    def _check_fit(self, found: AdapterFile) -> None:
        check_fit(self.base, found)
