"""The image pipeline: a base, the adapters on it, and pictures from prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import studio.adapters as core
from studio.adapters import AdapterInfo, Strength
from studio.errors import BadConfig
from studio.families import Base, open_base
from studio.pipelines.describe import describe
from studio.pipelines.pictures import BlendLike, blends_of_pictures
from studio.pipelines.prompt import TaggedPrompt, parse_prompt
from studio.pipelines.sample import Request, sample
from studio.pipelines.sources import Source, source_of

if TYPE_CHECKING:
    from studio.files import LoadReport

__all__ = ["ImagePipeline"]


class ImagePipeline:
    """Pictures from prompts, with any number of adapters.

    The adapters live in the modules of the diffusers pipeline (``.pipe``), so whatever else uses these modules (an
    img2img pipeline, a trainer) sees the same adapters.

    Args:
        base: an opened base; :meth:`open` opens one.

    Attributes:
        base: the base.
        pipe: its diffusers pipeline.
        sources: the file of every adapter that :meth:`load` loaded, by name.

    Example:
        >>> pipe = ImagePipeline.open("emoji")
        >>> image, = pipe.generate("tiger on a blue background", seeds=3, steps=4)
        >>> image.size, image.info["parameters"].splitlines()[0]
        ((64, 64), 'tiger on a blue background')
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.pipe = base.pipe
        self.sources: dict[str, Source] = {}

    @classmethod
    def open(
        cls, base: str | Path | Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> ImagePipeline:
        """Opens a base.

        Args:
            base: ``"emoji"``, a diffusers folder, a diffusers pipeline object, or an opened :class:`Base`.
            dtype: the weights' type; ``None``: fp32 for what is read from disk, unchanged for an object.
            device: where to; ``None``: the CPU for what is read from disk, unchanged for an object.

        Raises:
            UnknownName: neither a known name nor a folder.
            BadFile: a folder that is not a whole diffusers pipeline.
            DoesNotFit: a pipeline of a family that the studio does not know.
        """
        return cls(open_base(base, dtype=dtype, device=device))

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """The adapters on the pipeline, in the order in which they came."""
        return core.adapters(self.pipe)

    def load(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        strength: float | Strength = 1.0,
        allow_partial: bool = False,
        trainable: bool = False,
    ) -> LoadReport:
        """Loads an adapter and adds it to the current blend; as :func:`studio.load`, which lists what it raises.

        Args:
            file: a safetensors file, or a folder in PEFT's format.
            name: what tags and blends call it; ``None``: the name that the file records, else ``"default"``.
            strength: its strength in the current blend.
            allow_partial: load what fits and report the rest.
            trainable: whether its tensors require gradients.
        """
        from studio.files import load

        report = load(self.pipe, file, name=name, strength=strength, allow_partial=allow_partial, trainable=trainable)
        self.sources[report.name] = source_of(Path(file))
        return report

    def unload(self, name: str) -> None:
        """Takes an adapter off; the base's bits under it are as they were.

        Raises:
            UnknownName: no adapter has this name; the nearest is named.
        """
        core.detach(self.pipe, name)
        self.sources.pop(name, None)

    def blend(self, blend: BlendLike | str) -> None:
        """Sets the current blend: which adapters act from now on; ``{}`` is the base alone.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            DoesNotFit: a blend is baked into the weights.
        """
        core.blend(self.pipe, blend)

    def bake(self, blend: BlendLike | str | None = None) -> None:
        """Folds a blend (``None``: the current one) into the weights, until :meth:`unbake`.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            DoesNotFit: a blend is baked already, or weights are offloaded.
        """
        _ = self.base.hash  # of the base itself, so it is taken before the weights change
        core.bake(self.pipe, blend)

    def unbake(self) -> None:
        """Gives the base's weights back, bit for bit."""
        core.unbake(self.pipe)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        seeds: int | Sequence[int] = (0,),
        steps: int = 20,
        guidance: float = 5.0,
        negative: str | None = None,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        scheduler: str | Any | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Makes pictures: every prompt with every seed, prompt-major.

        Args:
            prompt: one or several; ``<name:0.8>`` in a prompt says which adapters act on its pictures, in place of
                ``blend`` (:mod:`studio.pipelines.prompt` has the forms).
            blend: ``None``: the current blend; a dict; the name of one adapter; or one dict per picture. A list of
                numbers as a strength has one entry per picture.
            seeds: whole numbers from 0 on.
            steps: denoising steps.
            guidance: scale of classifier-free guidance; 1 is the prompt alone.
            negative: what guidance leads away from.
            width: pixels; ``None``: the base's own.
            height: pixels; ``None``: the base's own.
            batch_size: images that are computed together, recorded as ``rows``; ``None``: 1. Pictures made with equal
                rows are equal to the bit; those made with others agree within 1/255 per pixel.
            scheduler: a name of :data:`SCHEDULERS`, a diffusers scheduler, or ``None`` for the base's own.
            on_step: called as ``on_step(done, total)`` after every denoising step.

        Returns:
            The pictures, each with ``.info["parameters"]`` (A1111's text) and ``.info["studio"]`` (JSON that makes it
            again: :func:`studio.pipelines.regenerate`).

        Raises:
            UnknownName: an adapter or scheduler that is not there; the nearest is named.
            BadConfig: an impossible number, a malformed tag, or lists whose lengths do not fit.
            DoesNotFit: a prompt that is too long, or a scheduler or base that cannot do this.
            StudioError: the model gave no finite numbers.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        seeds = [seeds] if isinstance(seeds, (int, float)) else list(seeds)
        if not prompts or not seeds:
            raise BadConfig(f"{len(prompts)} prompts and {len(seeds)} seeds make no picture; give at least one of each")
        written = [(text, seed) for text in prompts for seed in seeds]
        tagged = {text: self._read_tags(text) for text in prompts}
        away = self._read_tags(negative or "")
        if away.blend is not None:
            raise BadConfig(f"the negative prompt {negative!r} has a tag, and tags belong into the prompt; take it out")
        given = blends_of_pictures(blend, core.current_blend(self.pipe), len(written))
        requests = [
            Request(
                prompt=tagged[text].text,
                negative=away.text,
                seed=seed,
                width=self.base.native[0] if width is None else width,
                height=self.base.native[1] if height is None else height,
                steps=steps,
                guidance=guidance,
                scheduler=scheduler,
                blend=given[index] if tagged[text].blend is None else tagged[text].blend,
            )
            for index, (text, seed) in enumerate(written)
        ]
        rows = 1 if batch_size is None else batch_size
        images: dict[int, Image.Image] = {}
        for made in sample(self.base, requests, rows=rows, on_step=on_step):
            request, text = requests[made.index], written[made.index][0]
            texts = describe(
                self.base, self.sources, request, made.sampler, rows=rows, prompt=text, negative=negative or ""
            )
            made.image.info.update(texts)
            images[made.index] = made.image
        return [images[index] for index in range(len(requests))]

    def _read_tags(self, prompt: Any) -> TaggedPrompt:
        if not isinstance(prompt, str):
            raise BadConfig(f"a prompt is a text, not {prompt!r}")
        family, here = self.base.family, self.adapters
        sites = [site for info in here.values() for site in info.sites]
        encoders = [name for name in family.encoders if any(site.startswith(f"{name}.") for site in sites)]
        return parse_prompt(prompt, here, denoiser=family.denoiser, encoders=encoders)
