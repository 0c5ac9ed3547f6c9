"""What the tasks on diffusion bases share: their settings, and how they are opened."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from studio.adapters import AdapterConfig
from studio.config import check, plain
from studio.device import choose_device, choose_dtype
from studio.errors import BadConfig, DoesNotFit
from studio.families import BASES, Base, open_base
from studio.trainers.image.diffusion import Diffusion, Previews
from studio.trainers.image.latents import Pictures, picture_size
from studio.trainers.image.objective import Objective
from studio.trainers.image.prior import Prior, cache_folder
from studio.trainers.image.prompts import Prompts
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import Say
from studio.trainers.recipes import RATE_FACTORS, ImageRecipe, recipe_for

__all__ = ["ImageTask", "Opened", "checked_previews"]


@dataclass(frozen=True)
class Opened:
    """A base with what was decided about it while a task is opened."""

    base: Base
    recipe: ImageRecipe
    plan: Plan
    size: tuple[int, int]
    cache: Path
    say: Say
    skipped: list[str] = field(default_factory=list)

    def note_skipped(self, skipped: Sequence[Any]) -> None:
        """Says which files of a folder are not used and why, now and in the report."""
        for entry in skipped:
            self.skipped.append(str(entry))
            self.say(f"skipped: {entry}")


@dataclass(frozen=True, kw_only=True)
class ImageTask(ABC):
    """Settings that every task on a diffusion base has. ``None`` takes the recipe's value.

    Attributes:
        base: an embedded base's name, a diffusers folder, or a diffusers pipeline.
        resolution: side, or width and height, of the pictures in pixels; None: the base's own. Pictures are scaled
            until they cover it and cropped to it, never distorted.
        crop: ``"center"``, or ``"random"`` for a new place at each draw.
        flip: mirror half of the draws (leave it off for anything with a left and a right).
        text_encoder: adapt the text encoder too.
        text_encoder_learning_rate: its rate.
        weighting: name of the loss weighting (:data:`studio.trainers.image.objective.WEIGHTINGS`).
        gamma: γ of min-SNR.
        preview_prompts: what previews show; None: a prompt or two with the trigger; empty: no previews.
        preview_seeds: every prompt is shown with each of these.
        preview_steps, preview_guidance: sampling of the previews.
        licence: what the adapter file says about its licence.
    """

    kind: ClassVar[str]

    base: Any
    resolution: int | tuple[int, int] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    text_encoder: bool | None = None
    text_encoder_learning_rate: float | None = None
    weighting: str | None = None
    gamma: float = 5.0
    preview_prompts: tuple[str, ...] | None = None
    preview_seeds: tuple[int, ...] = (0,)
    preview_steps: int = 20
    preview_guidance: float = 5.0
    licence: str | None = None

    def __post_init__(self) -> None:
        check(self)
        rate = self.text_encoder_learning_rate
        if rate is not None and not rate > 0:
            raise BadConfig(f"text_encoder_learning_rate={rate!r} must be above 0; text_encoder=False trains none")
        if rate is not None and self.text_encoder is False:
            raise BadConfig("text_encoder_learning_rate is given and text_encoder is False: drop one of the two")

    @abstractmethod
    def read(self, opened: Opened) -> tuple[Pictures, list[str], Prior | None, dict[str, Any], dict[str, str]]:
        """Reads the data: pictures, their captions, the prior half, settings as decided, and inputs (name -> hash)."""

    @property
    @abstractmethod
    def trigger_words(self) -> str:
        """The words that call up what was learned."""

    @abstractmethod
    def default_previews(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Returns the prompts of previews where none were given."""

    def open(self, adapter: AdapterConfig | None, plan: Plan, say: Say) -> Diffusion:
        """See :meth:`studio.trainers.loop.task.Task.open`."""
        from studio.datasets.cache import content_key

        device = choose_device(plan.device)
        precision = choose_dtype(plan.precision, device, training=True)
        if precision.note:
            say(precision.note)
        say(f"opening the base {self._base_name()}")
        base = open_base(self.base, device=device)
        recipe = recipe_for(self.kind, base)
        assert isinstance(recipe, ImageRecipe), "the recipes of these tasks"
        adapter = adapter or recipe.adapter()
        factor = RATE_FACTORS.get(adapter.method, 1.0)
        steps = recipe.steps if plan.steps is None else plan.steps
        plan = plan.filled(
            steps=steps, learning_rate=recipe.learning_rate * factor, batch_size=recipe.batch_size,
            warmup=round(recipe.warmup * steps), schedule=recipe.schedule, beta2=recipe.beta2, preview_every=0,
        )  # fmt: skip
        size = picture_size(self.resolution, base)
        opened = Opened(base, recipe, plan, size, cache_folder(plan.cache), say)
        weighting = self.weighting or recipe.weighting
        objective = Objective.of(base.pipe.scheduler, weighting=weighting, gamma=self.gamma, device=device)
        pictures, captions, prior, settings, inputs = self.read(opened)
        rates = self._rates(opened, factor)
        prompts = self.default_previews(captions) if self.preview_prompts is None else self.preview_prompts
        previews = Previews(prompts, self.preview_seeds, size, self.preview_steps, self.preview_guidance)
        checked_previews(prompts, self.trigger_words, asked=self.preview_prompts is not None)
        shared = {
            "task": self.kind, "resolution": list(size), "crop": self.crop, "flip": self.flip, "weighting": weighting,
            "gamma": self.gamma, "learning_rates": dict(rates), "captions": content_key(captions)[:16],
        }  # fmt: skip
        inputs = {"base": base.id, "base_hash": base.hash, **inputs}
        lesson = Diffusion(
            base=base, adapter=adapter, name=re.sub(r"\W+", "-", self.trigger_words).strip("-") or "default", plan=plan,
            rates=rates, settings={**shared, **settings}, recorded=self._recorded(previews), inputs=inputs,
            objective=objective, pictures=pictures, captions_of=captions, prior=prior,
            prompts=Prompts(base, pictures.cache), previews=previews, origin=self._origin(opened, inputs, pictures),
            caption_dropout=float(settings.get("caption_dropout", 0.0)),
        )  # fmt: skip
        lesson.notes.append(_treatment(pictures, captions))
        lesson.notes.extend(f"skipped: {line}" for line in opened.skipped)
        lesson.notes.extend(f"cropped: {line}" for line in pictures.cropped())
        return lesson

    def _rates(self, opened: Opened, factor: float) -> dict[str, float]:
        """Returns the learning rate of each component that is trained."""
        family, plan = opened.base.family, opened.plan
        assert plan.learning_rate is not None, "the plan has been filled"
        rates = {family.denoiser: plan.learning_rate}
        wanted = opened.recipe.text_encoder if self.text_encoder is None else self.text_encoder
        if wanted or self.text_encoder_learning_rate is not None:
            rate = self.text_encoder_learning_rate or opened.recipe.text_encoder_learning_rate * factor
            rates.update(dict.fromkeys(family.encoders, rate))
        return rates

    def _base_name(self) -> str:
        if isinstance(self.base, Base):  # opened already
            return self.base.id if self.base.id in BASES or self.base.folder is None else str(self.base.folder)
        return str(self.base) if isinstance(self.base, (str, Path)) else type(self.base).__name__

    def _recorded(self, previews: Previews) -> dict[str, Any]:
        return {
            "base": self._base_name(),
            "previews": plain(previews),
        }

    def _origin(self, opened: Opened, inputs: Mapping[str, str], pictures: Pictures) -> dict[str, str]:
        width, height = opened.size
        origin = {
            "task": self.kind, "base": opened.base.id, "base_hash": opened.base.hash, "trigger": self.trigger_words,
            "seed": str(opened.plan.seed), "steps": str(opened.plan.steps), "dataset": inputs["instance_images"],
            "images": str(len(pictures.items)), "resolution": f"{width}x{height}",
            "learning_rate": repr(opened.plan.learning_rate), "batch_size": str(opened.plan.batch_size),
        }  # fmt: skip
        return origin | ({"licence": self.licence} if self.licence else {})


def _treatment(pictures: Pictures, captions: Sequence[str]) -> str:
    """Says what is done to the pictures and what they are called."""
    width, height = pictures.size
    crop = "in the middle" if pictures.crop == "center" else "at a new place for each draw"
    mirrored = ", every second draw mirrored" if pictures.flip else ""
    different = list(dict.fromkeys(captions))
    called = f"all called {different[0]!r}" if len(different) == 1 else f"with {len(different)} different captions"
    return (
        f"{len(pictures.items)} pictures, {called}; scaled until they cover {width} x {height} pixels and cropped "
        f"{crop}{mirrored}"
    )


def checked_previews(prompts: Sequence[str], trigger: str, *, asked: bool) -> None:
    """Checks that every preview calls up what is learned.

    Raises:
        DoesNotFit: a prompt lacks a word of the trigger: it would show the base.
    """
    words = trigger.lower().split()
    for prompt in prompts:
        present = re.findall(r"[^\s,.;:]+", prompt.lower())
        missing = [word for word in words if word.strip(",.;:") not in present]
        if missing and asked:
            raise DoesNotFit(
                f"the preview prompt {prompt!r} lacks the trigger {trigger!r} (missing: {' '.join(missing)}), so it "
                "would show the base and not what is learned; put the trigger into it"
            )
