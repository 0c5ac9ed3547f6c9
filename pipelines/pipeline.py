"""The image pipeline: a base, the adapters on it, and pictures from prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import studio
import studio.adapters as core
from studio.adapters import AdapterInfo, Strength
from studio.adapters.strength import StrengthLike, as_strength
from studio.errors import BadConfig
from studio.families import Base, open_base
from studio.files import LoadReport, load
from studio.pipelines.metadata import AdapterUse, parameters_text, strength_to_json, to_json
from studio.pipelines.prompt import TaggedPrompt, parse_prompt
from studio.pipelines.sample import Made, Request, sample
from studio.pipelines.sources import Source, source_of, state_hash

__all__ = ["ImagePipeline"]

BlendLike = Mapping[str, StrengthLike]


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
        report = load(
            self.pipe, file, name=name, strength=strength, allow_partial=allow_partial, trainable=trainable
        )
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
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        if not prompts or not seeds:
            raise BadConfig(f"{len(prompts)} prompts and {len(seeds)} seeds make no picture; give at least one of each")
        written = [(text, seed) for text in prompts for seed in seeds]
        tagged = {text: self._read_tags(text) for text in prompts}
        given = self._blends(blend, len(written))
        if self._read_tags(negative or "").blend is not None:
            raise BadConfig(f"the negative prompt {negative!r} has a tag; adapters act on the whole picture: tag the prompt")
        requests = [
            Request(
                prompt=tagged[text].text,
                negative=self._read_tags(negative or "").text,
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
        images: list[Image.Image] = [Image.new("RGB", (1, 1))] * len(requests)
        for made in sample(self.base, requests, rows=rows, on_step=on_step):
            request = requests[made.index]
            made.image.info.update(self._describe(made, request, written[made.index][0], negative or "", rows))
            images[made.index] = made.image
        return images

    def _read_tags(self, prompt: str) -> TaggedPrompt:
        if not isinstance(prompt, str):
            raise BadConfig(f"a prompt is a text, not {prompt!r}")
        family, here = self.base.family, self.adapters
        sites = [site for info in here.values() for site in info.sites]
        encoders = [name for name in family.encoders if any(site.startswith(f"{name}.") for site in sites)]
        return parse_prompt(prompt, here, denoiser=family.denoiser, encoders=encoders)

    def _blends(self, blend: BlendLike | str | Sequence[BlendLike] | None, count: int) -> list[dict[str, Strength] | None]:
        """One blend per picture, ``None`` for the current one; strengths per sample are dealt out."""
        if blend is None:
            current = core.current_blend(self.pipe)
            if all(strength.samples is None for strength in current.values()):
                return [None] * count
            blend = current
        if isinstance(blend, str):
            blend = {blend: 1.0}
        if isinstance(blend, Mapping):
            return [_for_picture(blend, index, count) for index in range(count)]
        given = list(blend)
        if len(given) != count:
            raise BadConfig(f"{len(given)} blends for {count} pictures (prompts × seeds); give one dict, or one per picture")
        return [_for_picture(one, 0, 1) for one in given]

    def _describe(self, made: Made, request: Request, written: str, negative: str, rows: int) -> dict[str, str]:
        """The picture's texts."""
        base, family, sampler = self.base, self.base.family, made.sampler
        uses = self._uses(request)
        # of weights with something baked into them there is no hash of the base, unless it was taken before
        known = "hash" in vars(base) or not any(info.baked for info in self.adapters.values())
        digest = base.hash if known else None
        fields: dict[str, str | int | float] = {"Steps": request.steps, "Sampler": sampler.title}
        if sampler.schedule:
            fields["Schedule type"] = sampler.schedule
        fields |= {"CFG scale": request.guidance, "Seed": request.seed, "Size": f"{request.width}x{request.height}"}
        fields |= {"Model hash": digest[:10]} if digest else {}
        fields |= {"Model": base.id, "Version": f"adapter-studio {studio.__version__}"}
        denoiser = self.pipe.components[family.denoiser]
        return {
            "parameters": parameters_text(
                text=request.prompt,
                negative=request.negative,
                fields=fields,
                adapters=uses,
                encoders=family.encoders,
                denoiser=family.denoiser,
            ),
            "studio": to_json(
                version=studio.__version__,
                base={
                    "id": base.id,
                    "family": family.name,
                    "hash": digest,
                    "dtype": str(denoiser.dtype).removeprefix("torch."),
                },
                request={
                    "prompt": written,
                    "negative": negative,
                    "seed": request.seed,
                    "steps": request.steps,
                    "guidance": float(request.guidance),
                    "width": request.width,
                    "height": request.height,
                },
                scheduler=sampler.record,
                rows=rows,
                device=self.pipe._execution_device.type,
                adapters=uses,
            ),
        }

    def _uses(self, request: Request) -> list[AdapterUse]:
        """The adapters that act on a picture, in the order in which they stand on the pipeline."""
        uses = []
        for name, info in self.adapters.items():
            strength = info.strength if request.blend is None else as_strength(request.blend.get(name, 0.0))
            content = strength_to_json(strength)
            if content == 0.0:
                continue
            source = self.sources.get(name)
            if source is None:
                use = AdapterUse(name=name, strength=content, baked=info.baked, state=state_hash(self.pipe, info))
            else:
                use = AdapterUse(
                    name=name,
                    strength=content,
                    baked=info.baked,
                    file=source.file,
                    sha256=source.sha256,
                    lora_hash=source.lora_hash,
                )
            uses.append(use)
        return uses


def _for_picture(blend: BlendLike, index: int, count: int) -> dict[str, Strength]:
    """A blend as it is for one of ``count`` pictures."""
    if not isinstance(blend, Mapping):
        raise BadConfig(f"a blend is a dict of adapters and strengths, not {blend!r}")
    dealt = {}
    for name, value in blend.items():
        strength = as_strength(value)
        if strength.samples is not None:
            if len(strength.samples) != count:
                raise BadConfig(
                    f"the strength of {name!r} has {len(strength.samples)} entries for {count} pictures; give one per picture"
                )
            strength = Strength(
                strength.value * strength.samples[index],
                blocks=dict(strength.blocks),
                **dict(strength.components),
            )
        dealt[name] = strength
    return dealt
