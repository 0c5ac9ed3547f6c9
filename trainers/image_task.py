"""What the tasks on diffusion bases share: their settings, and how they are opened."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.config import check, plain
from studio.datasets.trigger import Trigger, missing_words
from studio.errors import BadConfig, DoesNotFit
from studio.families import BASES, Base, open_base
from studio.families.attention import ATTENTIONS
from studio.families.family import Defaults
from studio.limits import limit
from studio.trainers.image.diffusion import Diffusion, Previews
from studio.trainers.image.fit import check_fit
from studio.trainers.image.latents import Latents, picture_size, sides_of
from studio.trainers.image.objective import Objective
from studio.trainers.image.prior import Prior
from studio.trainers.image.prompts import Prompts
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import AdapterLike, Say
from studio.trainers.opening import Opening, open_with_recipe
from studio.trainers.recipes import ImageRecipe

if TYPE_CHECKING:
    import torch

    from studio.datasets.folder import ImageFolder

__all__ = ["ImageTask", "Material"]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What an image task has read.

    Args:
        latents: the pictures.
        captions: the text that each is trained with.
        prior: the prior half of the loss, or None.
        caption_dropout: probability with which a sample has no caption.
        settings: what was decided meanwhile, for ``run.toml``.
        inputs: what was read, as name -> hash.
    """

    latents: Latents
    captions: list[str]
    prior: Prior | None = None
    caption_dropout: float = 0.0
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ImageTask(ABC):
    """Settings that every task on a diffusion base has. ``None`` takes the recipe's value.

    Attributes:
        base: what :func:`studio.families.open_base` takes: an embedded base's name, a diffusers folder, a checkpoint of
            one file, a hub id, or a diffusers pipeline.
        resolution: side, or width and height, of the pictures in pixels; None: the base's own. Pictures are scaled
            until they cover it and cropped to it, never distorted.
        crop: ``"center"``, or ``"random"`` for a new place at each draw.
        flip: mirror half of the draws (leave it off for anything with a left and a right).
        text_encoder: adapt the text encoder too.
        text_encoder_learning_rate: its rate.
        weighting: name of the loss weighting (:data:`studio.trainers.image.objective.WEIGHTINGS`).
        gamma: γ of min-SNR.
        density: name of the density of the times that are trained (:data:`studio.trainers.image.objective.DENSITIES`).
        shift: k of a flow's ``s = k u / (1 + (k−1) u)``: above 1, more of the noisy times are trained.
        preview_prompts: what previews show; None: a prompt or two with the trigger; empty: no previews.
        preview_seeds: every prompt is shown with each of these.
        preview_steps, preview_guidance: sampling of the previews; None: the base's own.
        preview_attention: by what previews compute attention (:data:`studio.families.attention.ATTENTIONS`); None: as
            the base was opened.
        preview_vae_tiling: the autoencoder takes previews in overlapping tiles.
        caption_encoding: what caption files without a mark are read as: ``"utf-8"``, or ``"windows-1252"``.
        licence: what the adapter file says about its licence.
        config_of: for a base in one file, the folder or the hub id of its configs, and of what the file lacks.
        quantize: what of the base is kept in fewer bits, and how: ``"nf4"``, ``"nf4,text_encoder_2=int8"``; None:
            nothing.

    Raises:
        BadConfig: a field with an impossible value, or two that contradict each other.
        UnknownName: no attention is called so.
    """

    task_name: ClassVar[str]

    base: Any
    resolution: int | tuple[int, int] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    text_encoder: bool | None = None
    text_encoder_learning_rate: float | None = None
    weighting: str | None = None
    gamma: float = 5.0
    density: str | None = None
    shift: float | None = None
    preview_prompts: tuple[str, ...] | None = None
    preview_seeds: tuple[int, ...] = (0,)
    preview_steps: int | None = None
    preview_guidance: float | None = None
    preview_attention: str | None = None
    preview_vae_tiling: bool = False
    caption_encoding: Literal["utf-8", "windows-1252"] = "utf-8"
    licence: str | None = None
    config_of: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.resolution is not None:
            sides_of(self.resolution)
        self._check_numbers()
        _ = ATTENTIONS[self.preview_attention or "sdpa"]
        rate = self.text_encoder_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise BadConfig(f"text_encoder_learning_rate={rate!r} must be above 0; text_encoder=False trains none")
        if rate is not None and self.text_encoder is False:
            raise BadConfig("text_encoder_learning_rate is given and text_encoder is False: drop one of the two")

    def _check_numbers(self) -> None:
        """Checks what is asked of the loss and of the previews, before a base is opened for them."""
        guidance, seeds, steps = self.preview_guidance, self.preview_seeds, self.preview_steps
        for name, sound, wanted in (
            ("gamma", self.gamma > 0, "above 0 (5 is usual)"),
            ("preview_steps", steps is None or 1 <= steps <= limit("steps"), "a whole number from 1 on"),
            ("preview_guidance", guidance is None or 0 <= guidance < math.inf, "a finite number from 0 on"),
            ("preview_seeds", all(0 <= seed < 2**63 for seed in seeds), "whole numbers from 0 to 2**63 - 1"),
        ):
            if not sound:
                raise BadConfig(f"{name}={getattr(self, name)!r} must be {wanted}")

    @property
    @abstractmethod
    def answers_to(self) -> Trigger:
        """What calls up what is learned, and what the pictures are called."""

    @property
    def trigger_words(self) -> str:
        """The words that call up what is learned."""
        return self.answers_to.words

    @abstractmethod
    def read(self, opening: Opening[Base], size: tuple[int, int], folders: Sequence[ImageFolder]) -> Material:
        """Makes of the pictures what is trained on.

        Args:
            opening: the base and what was decided.
            size: width and height in pixels to train at.
            folders: what :meth:`look` has read.

        Raises:
            UsageError: they cannot be used on this base.
        """

    @abstractmethod
    def look(self) -> tuple[ImageFolder, ...]:
        """Reads the folders with pictures, before the base is opened.

        Raises:
            BadFile: one is not there, or cannot be used.
        """

    def open(self, adapter: AdapterLike, plan: Plan, say: Say) -> Diffusion:
        """See :meth:`studio.trainers.Task.open`."""
        folders = self._checked(adapter, plan, say)
        opening = open_with_recipe(
            self.task_name, self.base, lambda base, **more: open_base(base, config_of=self.config_of, **more), BASES,
            adapter=adapter, plan=plan, say=say, quantize=self.quantize,
        )  # fmt: skip
        base, recipe = opening.base, opening.recipe
        assert isinstance(recipe, ImageRecipe), "the recipes of these tasks"
        size = picture_size(self.resolution, base)
        objective = self._objective(base, recipe, size, opening.device)
        material = self.read(opening, size, folders)
        strange = check_fit(base, material.latents, material.captions)
        if strange:
            opening.tell(strange)
        previews = self._previews(material.captions, size, base.defaults)
        rates = self._rates(opening, recipe)
        inputs = {"base": base.id, "base_hash": base.hash, **material.inputs, **opening.inputs}
        return Diffusion(
            base=base, adapter=opening.adapter, name=re.sub(r"\W+", "-", self.trigger_words).strip("-") or "default",
            plan=opening.plan, rates=rates, settings=self._settings(material, objective, rates),
            recorded={"base": opening.base_name, **self._configs(), "previews": plain(previews)}, inputs=inputs,
            objective=objective, latents=material.latents, captions_of=material.captions, prior=material.prior,
            prompts=Prompts(base, material.latents.cache), previews=previews,
            start=opening.start, call=self._call(opening, material), foresee=opening.foreseen(self),
            origin=self._origin(opening, material), caption_dropout=material.caption_dropout,
            notes=[_treatment(material), *opening.notes, *(f"cropped: {line}" for line in material.latents.cropped())],
        )  # fmt: skip

    def _checked(self, adapter: AdapterLike, plan: Plan, say: Say) -> Sequence[ImageFolder]:
        """Returns the folders, once all that needs no base is checked."""
        if plan.fit is not None:
            from studio.trainers.forecast.before import check_before

            check_before(self, adapter, plan, say)
        self._check_previews()
        return self.look()

    def _configs(self) -> dict[str, str]:
        """What is said about the base besides its name."""
        return {} if self.config_of is None else {"config_of": self.config_of}

    def _call(self, opening: Opening[Base], material: Material) -> tuple[str, ...]:
        """Returns the command that draws what is learned, before the adapter is named."""
        configs: tuple[str, ...] = () if self.config_of is None else ("--config-of", self.config_of)
        configs += () if self.quantize is None else ("--quantize", self.quantize)
        return ("studio", "generate", opening.base_name, self.answers_to.previews(material.captions)[0], *configs)

    def latents_of(self, folder: ImageFolder, opening: Opening[Base], size: tuple[int, int]) -> Latents:
        """Returns the latents of a folder's pictures, and says which of its files are not used and why.

        Args:
            folder: the pictures.
            opening: the base and what was decided.
            size: width and height in pixels to train at.
        """
        from studio.datasets.cache import TensorCache, cache_folder

        for entry in folder.skipped:
            opening.tell(f"skipped: {entry}")
        cache = TensorCache(cache_folder(opening.plan.cache) / "tensors")
        return Latents(opening.base, folder.items, size=size, crop=self.crop, flip=self.flip, cache=cache)

    def _objective(self, base: Base, recipe: ImageRecipe, size: tuple[int, int], device: torch.device) -> Objective:
        """Returns what is trained at this size."""
        family, cells = base.family, (size[1] // base.downscale, size[0] // base.downscale)
        usual = family.shift(base.pipe, cells) if recipe.shifted else 1.0
        return Objective(
            process=family.process.of(base.pipe.scheduler, device), gamma=self.gamma,
            weighting=self.weighting or recipe.weighting, density=self.density or recipe.density,
            shift=usual if self.shift is None else self.shift,
        )  # fmt: skip

    def _previews(self, captions: Sequence[str], size: tuple[int, int], own: Defaults) -> Previews:
        """Returns what previews show; captions are no prompts, and are drawn as they stand."""
        from studio.pipelines import escape_prompt

        own_prompts = tuple(map(escape_prompt, self.answers_to.previews(captions)))
        prompts = own_prompts if self.preview_prompts is None else self.preview_prompts
        guidance = own.guidance if self.preview_guidance is None else self.preview_guidance
        steps = own.steps if self.preview_steps is None else self.preview_steps
        return Previews(
            prompts, self.preview_seeds, size, steps, guidance, self.preview_attention, self.preview_vae_tiling
        )  # fmt: skip

    def _check_previews(self) -> None:
        """Checks that each preview prompt calls up what is learned.

        Raises:
            DoesNotFit: one lacks the trigger.
        """
        for prompt in self.preview_prompts or ():
            missing = missing_words(self.trigger_words, prompt)
            if missing:
                raise DoesNotFit(
                    f"the preview prompt {prompt!r} lacks the trigger {self.trigger_words!r} (missing: "
                    f"{' '.join(missing)}), so it would show the base and not what is learned; put the trigger into it"
                )

    def _settings(self, material: Material, objective: Objective, rates: Mapping[str, float]) -> dict[str, Any]:
        from studio.datasets.cache import content_key

        times = {"density": objective.density, "shift": objective.shift}
        return {
            "task": self.task_name, "resolution": list(material.latents.size), "crop": self.crop, "flip": self.flip,
            "weighting": objective.weighting, "gamma": self.gamma, "learning_rates": dict(rates),
            "captions": content_key(material.captions)[:16], **material.settings,
            **(times if times != {"density": "uniform", "shift": 1.0} else {}),
            **({} if self.quantize is None else {"quantize": self.quantize}),
        }  # fmt: skip

    def _rates(self, opening: Opening[Base], recipe: ImageRecipe) -> dict[str, float]:
        """Returns the learning rate of each component that is trained."""
        family = opening.base.family
        rates = {family.denoiser: opening.rate}
        wanted = recipe.text_encoder if self.text_encoder is None else self.text_encoder
        if wanted or self.text_encoder_learning_rate is not None:
            rate = self.text_encoder_learning_rate or recipe.text_encoder_learning_rate * opening.factor
            trained = [one.component for one in family.encoders if one.trained]
            if not trained:
                raise DoesNotFit(
                    f"text_encoder=True: the text encoder of {family.title} is not trained with its pictures, by no "
                    "tool; leave it out"
                )
            rates.update(dict.fromkeys(trained, rate))
        return rates

    def _origin(self, opening: Opening[Base], material: Material) -> dict[str, str]:
        width, height = material.latents.size
        return opening.origin(self.task_name, material.inputs["instance_images"], self.licence) | {
            "trigger": self.trigger_words, "images": str(len(material.latents.items)),
            "resolution": f"{width}x{height}",
        }  # fmt: skip


def _treatment(material: Material) -> str:
    """Says what is done to the pictures and what they are called."""
    latents = material.latents
    width, height = latents.size
    crop = "in the middle" if latents.crop == "center" else "at a new place for each draw"
    mirrored = ", every second draw mirrored" if latents.flip else ""
    different = list(dict.fromkeys(material.captions))
    called = f"all called {different[0]!r}" if len(different) == 1 else f"with {len(different)} different captions"
    return (
        f"{len(latents.items)} pictures, {called}; scaled until they cover {width} x {height} pixels and cropped "
        f"{crop}{mirrored}"
    )
