"""The image pipeline: a base, the adapters on it, and pictures from prompts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from PIL import Image

import studio.adapters as core
from studio.config import listed, own_number
from studio.errors import BadConfig, DoesNotFit
from studio.families import FAMILIES, Base, open_base
from studio.pipelines.blends import BlendLike, deal_blend
from studio.pipelines.describe import describe
from studio.pipelines.drawing import Drawing
from studio.pipelines.pictures import given_picture
from studio.pipelines.pipeline import Pipeline
from studio.pipelines.prompt import TaggedPrompt, parse_prompt
from studio.pipelines.remarks import Remark, remarks
from studio.pipelines.sample import Request, sample
from studio.pipelines.start import Given

if TYPE_CHECKING:
    from studio.files import AdapterFile

__all__ = ["ImagePipeline"]

AnyImagePipeline = TypeVar("AnyImagePipeline", bound="ImagePipeline")

# the factor of a pair that reads the text: keys of diffusers, PEFT and kohya files
_READS_TEXT: Final = re.compile(r"attn2[._]to_[kv]\.(lora_down|lora_A|lora\.down)(\.\w+)?\.weight$")


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

        Raises:
            UnknownName: neither a known name nor a path nor an id that the hub has, or no such type, attention or way
                to offload.
            BadFile: what is there is not a whole base.
            DoesNotFit: a base of a family that the studio does not know, or a device that cannot do this.
        """
        opened = open_base(
            base, dtype=dtype, device=device, config_of=config_of, offline=offline, offload=offload
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
        seeds: int | Sequence[int] = (0,),
        steps: int | None = None,
        guidance: float | None = None,
        embedded_guidance: float | None = None,
        negative: str | None = None,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        scheduler: str | Any | None = None,
        image: str | Path | Image.Image | None = None,
        strength: float | None = None,
        mask: str | Path | Image.Image | None = None,
        attention: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Makes pictures: every prompt with every seed, prompt-major.

        Args:
            prompt: one or several; ``<name:0.8>`` in a prompt says which adapters act on its pictures, in place of
                ``blend`` (:mod:`studio.pipelines.prompt` has the forms).
            blend: ``None``: the current blend; a dict; the name of one adapter; or one dict per picture. A list of
                numbers as a strength has one entry per picture.
            seeds: whole numbers from 0 on.
            steps: denoising steps; ``None``: the base's own.
            guidance: scale of classifier-free guidance; 1 is the prompt alone. ``None``: the base's own.
            embedded_guidance: the guidance that some distilled bases (Flux dev) take as a number instead; ``None``: the
                base's own.
            negative: what guidance leads away from.
            width: pixels; ``None``: the base's own.
            height: pixels; ``None``: the base's own.
            batch_size: images that are computed together, recorded as ``rows``; ``None``: 1. Pictures made with equal
                rows are equal to the bit; those made with others agree within 1/255 per pixel.
            scheduler: a name of :data:`SCHEDULERS`, a diffusers scheduler, or ``None`` for the base's own.
            image: a picture to start from instead of noise alone; it is scaled until it covers the size and cropped.
            strength: which part of the denoising it goes through, above 0 and at most 1; ``None``: 0.6.
            mask: where it is drawn anew (white); elsewhere it stays as it is.
            attention: by what the denoiser's attention is computed in this call, as :meth:`open` has it; ``None``: as
                the base was opened.
            on_step: called as ``on_step(done, total)`` after every denoising step.

        Returns:
            The pictures, each with ``.info["parameters"]`` (A1111's text) and ``.info["studio"]`` (JSON that makes it
            again: :func:`studio.pipelines.regenerate`); both are in a PNG that ``.save("x.png")`` writes. A
            :class:`~studio.pipelines.remarks.Remark` is a warning of what has no effect: weights in a prompt, a
            negative prompt without guidance.

        Raises:
            UnknownName: an adapter, scheduler or attention that is not there; the nearest is named.
            BadConfig: an impossible number, a malformed tag, or lists whose lengths do not fit.
            BadFile: a picture to start from that cannot be read.
            DoesNotFit: a prompt that is too long, or a scheduler or base that cannot do this.
            StudioError: the model gave no finite numbers.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        seeds = _seeds(seeds)
        if not prompts or not seeds:
            raise BadConfig(f"{len(prompts)} prompts and {len(seeds)} seeds make no picture; give at least one of each")
        tagged, away = {text: self._read_tags(text) for text in prompts}, self._read_negative(negative)
        own, given = self.base.defaults, given_picture(self.base, image, mask, strength, (width, height))
        guidance = own.guidance if guidance is None else own_number(guidance)
        for remark in remarks(prompts, negative=negative, guidance=guidance):
            warnings.warn(remark, Remark, stacklevel=2)
        written = [(text, seed) for text in prompts for seed in seeds]
        blends = deal_blend(blend, [tagged[text].blend for text, _ in written], core.current_blend(self.pipe))
        common: dict[str, Any] = {
            "negative": away, "steps": _or(steps, own.steps), "guidance": guidance, "scheduler": scheduler,
            "embedded": _or(embedded_guidance, own.embedded), "given": given,
            **self._size(given, width, height),
        }  # fmt: skip
        requests = [
            Request(prompt=tagged[text].text, seed=seed, blend=acting, **common)
            for (text, seed), acting in zip(written, blends, strict=True)
        ]
        rows = own_number(_or(batch_size, 1))
        base = self.base.sparing(**({} if attention is None else {"attention": attention}))
        images: dict[int, Drawing] = {}
        for made in sample(base, requests, rows=rows, on_step=on_step):
            texts = describe(
                base, self.sources, requests[made.index], made.sampler, rows=rows, prompt=written[made.index][0],
                negative=negative or "",
            )  # fmt: skip
            images[made.index] = Drawing.of(made.image, texts)
        return [images[index] for index in range(len(requests))]

    def _size(self, given: Given | None, width: int | None, height: int | None) -> dict[str, Any]:
        """Width and height: of the given picture, as asked, or the base's own."""
        own = self.base.native if given is None else given.image.size
        return {"width": _or(width, own[0]), "height": _or(height, own[1])}

    def _check_fit(self, found: AdapterFile) -> None:
        """Checks that an adapter is for pictures, and was made for text vectors as wide as this base's.

        Raises:
            DoesNotFit: it is for a language model, or it was not.
        """
        if found.family == "llm" or "tokenizer" in found.facts:
            raise DoesNotFit(
                f"{found.file} is an adapter for a language model, and {self.base.id} draws pictures: write with it on "
                "the base that it was trained on (studio complete)"
            )
        here = getattr(self.pipe.components[self.base.family.denoiser].config, "cross_attention_dim", None)
        wide = {shape[1] for key, (_, shape) in found.tensors.items() if _READS_TEXT.search(key) and len(shape) == 2}
        if isinstance(here, int) and len(wide) == 1 and here not in wide:
            title = FAMILIES[found.family].title if found.family in FAMILIES else found.family_title
            family = f", as {title} has it" if title else ""
            raise DoesNotFit(
                f"{found.file} was made for text of width {wide.pop()}{family}, and {self.base.id} has width {here}: "
                "load it on the base that it was trained on"
            )

    def _read_negative(self, negative: str | None) -> str:
        away = self._read_tags("" if negative is None else negative)
        if away.blend is not None:
            raise BadConfig(f"the negative prompt {negative!r} has a tag, and tags belong into the prompt; take it out")
        return away.text

    def _read_tags(self, prompt: Any) -> TaggedPrompt:
        family, here = self.base.family, self.adapters
        sites = [site for info in here.values() for site in info.sites]
        encoders = [name for name in family.readers if any(site.startswith(f"{name}.") for site in sites)]
        return parse_prompt(prompt, here, denoiser=family.denoiser, encoders=encoders)


def _seeds(seeds: Any) -> list[Any]:
    """Returns seeds as a list, numbers of numpy and torch as Python's own; what they are is checked with the rest.

    Raises:
        BadConfig: neither a number nor several.
    """
    seeds = listed(own_number(seeds))
    if isinstance(seeds, (int, float)):
        return [seeds]
    if isinstance(seeds, (str, bytes, Mapping)) or not isinstance(seeds, Iterable):
        raise BadConfig(f"seeds={seeds!r}: give a whole number from 0 on, or several in a list")
    return [own_number(seed) for seed in seeds]


def _or(given: Any, own: Any) -> Any:
    """What was given, or else the base's own."""
    return own if given is None else given
