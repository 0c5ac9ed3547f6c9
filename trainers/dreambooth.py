"""DreamBooth: one subject from a handful of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from studio.datasets.trigger import Trigger, class_prompt_of
from studio.errors import BadConfig, DoesNotFit, nearest
from studio.families import Base
from studio.given import is_blank
from studio.trainers.image.latents import Latents
from studio.trainers.image.prior import PRIORS, ClassPictures, Prior
from studio.trainers.image_task import ImageTask, Material
from studio.trainers.loop.draws import Draws
from studio.trainers.opening import Opening
from studio.trainers.recipes import ImageRecipe

if TYPE_CHECKING:
    from studio.datasets.folder import ImageFolder

__all__ = ["DreamBooth"]


@dataclass(frozen=True, kw_only=True)
class DreamBooth(ImageTask):
    """Teaches the base a subject under a rare name, and keeps what it knows of the subject's class.

    Three facts suffice: ``base``, ``instance_images``, ``instance_prompt``. Everything else has a default, which
    :mod:`studio.trainers.recipes` lists with its origin:

    * On a full-size base (Stable Diffusion 1.5): LoRA of rank 16 on the attention layers, rate 1e-4 with 5 % warm-up
      and a cosine, 800 steps of one picture, min-SNR weights with γ = 5, the text encoder as it is (5e-5 where it is
      adapted), the base's own prediction as prior where a class prompt is given.
    * On the small embedded base: rank 16 on attention and feed-forward layers, rate 2e-3, 1200 steps of four pictures;
      the rest as above.

    DoRA and LoKr take the same rates, IA³ three times them.

    Attributes:
        instance_images: folder with pictures of the subject. Caption files in it are used (a caption without the
            trigger gets the instance prompt in front); pictures without one have the instance prompt.
        instance_prompt: names the subject by a rare word and its class: ``"a photo of sks dog"``.
        class_prompt: the same without the rare word: ``"a photo of dog"``. Or several, with the places that the class
            shall still be found in (``"a photo of dog on a beach"``). None: where a prior needs one,
            the instance prompt without the first of at least two words after its "a photo of".
        prior: ``"none"``, ``"images"`` (class pictures given), ``"generate"`` (made by the base once and kept) or
            ``"self"`` (the base's own prediction; it needs no pictures, and uses ``class_images`` where given). None:
            ``"images"`` where ``class_images`` are given, else the recipe's.
        prior_weight: λ of the prior half.
        prior_rows: rows of the prior half per micro-batch; None: the recipe's, or as many as instance rows.
        class_images: folder with class pictures.
        class_count: how many class pictures ``"generate"`` makes.
        captions: use the caption files.

    Raises:
        BadConfig: fields that contradict each other.

    References:
        | DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation (Ruiz et al., 2022),
        | arXiv:2208.12242

    Example:
        >>> DreamBooth(base="emoji", instance_images="photos", instance_prompt="a photo of sks dog").trigger_words
        'sks dog'
    """

    task_name: ClassVar[str] = "dreambooth"

    instance_images: str | Path
    instance_prompt: str
    class_prompt: str | tuple[str, ...] | None = None
    prior: str | None = None
    prior_weight: float | None = None
    prior_rows: int | None = None
    class_images: str | Path | None = None
    class_count: int = 100
    captions: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_blank(self.instance_prompt):
            raise BadConfig("instance_prompt is empty: name the subject, such as 'a photo of sks dog'")
        if any(is_blank(prompt) for prompt in self.class_prompts):
            raise BadConfig("class_prompt is empty: name the class, such as 'a photo of dog', or leave it out")
        if self.instance_prompt in self.class_prompts:
            raise BadConfig(
                f"instance_prompt and class_prompt are both {self.instance_prompt!r}, so nothing tells the subject "
                "from its class; put a rare word into the instance prompt, such as 'a photo of sks dog'"
            )
        if self.prior is not None and self.prior not in PRIORS:
            close = nearest(self.prior, PRIORS, 1)[0]
            raise BadConfig(f"prior={self.prior!r}: did you mean {close!r}? (known: {', '.join(PRIORS)})")
        if self.prior_weight is not None and not 0 <= self.prior_weight < math.inf:
            raise BadConfig(f"prior_weight={self.prior_weight!r} must be a finite number, at least 0")
        if self.prior_rows is not None and self.prior_rows < 1:
            raise BadConfig(f"prior_rows={self.prior_rows!r} must be at least 1; prior='none' trains without a prior")
        if self.class_count < 1:
            raise BadConfig(f"class_count={self.class_count!r} must be at least 1")
        self._check_class()

    def _check_class(self) -> None:
        """Checks that the prior has what it needs, and that what is given is used."""
        named = bool(self.class_prompts or self.likely_class)
        if self.prior in ("images", "generate", "self") and not named:
            raise BadConfig(f"prior={self.prior!r} needs a class_prompt, such as 'a photo of dog'")
        if self.prior == "images" and self.class_images is None:
            raise BadConfig("prior='images' needs class_images, a folder with pictures of the class")
        if self.class_images is not None and self.prior not in (None, "images", "self"):
            raise BadConfig(f"class_images are given and prior={self.prior!r} would not use them: drop one of the two")
        if self.class_images is not None and not named:
            raise BadConfig("class_images need a class_prompt that says what they show, such as 'a photo of dog'")

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """The class prompts; none, one or several."""
        return (self.class_prompt,) if isinstance(self.class_prompt, str) else tuple(self.class_prompt or ())

    @property
    def likely_class(self) -> str | None:
        """The class prompt that follows from the instance prompt, by the custom that the rare word comes first.

        Example:
            >>> DreamBooth(base="emoji", instance_images="photos", instance_prompt="a photo of sks dog").likely_class
            'a photo of dog'
        """
        return class_prompt_of(self.instance_prompt)

    def look(self) -> tuple[ImageFolder, ...]:
        """Reads the pictures of the subject, and those of its class where they are given."""
        from studio.datasets.folder import read_folder

        subject = read_folder(self.instance_images, captions=self.captions, encoding=self.caption_encoding)
        if self.class_images is None:
            return (subject,)
        return subject, read_folder(self.class_images, captions=False, generated=True)

    @property
    def answers_to(self) -> Trigger:
        """The instance prompt, without its "a photo of"."""
        return Trigger.of_subject(self.instance_prompt)

    def read(self, opening: Opening[Base], size: tuple[int, int], folders: Sequence[ImageFolder]) -> Material:
        """See :meth:`ImageTask.read`."""
        folder = folders[0]
        latents = self.latents_of(folder, opening, size)
        recipe = opening.recipe
        assert isinstance(recipe, ImageRecipe), "the recipe of this task"
        settings: dict[str, Any] = {"instance_prompt": self.instance_prompt, "prior": self._prior(recipe)}
        inputs, prior = {"instance_images": folder.digest}, None
        if settings["prior"] != "none":
            batch = opening.plan.batch_size
            assert batch is not None, "the plan has been filled"
            rows = (recipe.prior_rows if self.prior_rows is None else self.prior_rows) or batch
            prior = Prior(
                prompts=self._prior_prompts(opening), own=settings["prior"] == "self", rows=rows,
                batch=batch,
                weight=recipe.prior_weight if self.prior_weight is None else self.prior_weight,
                draws=Draws(opening.plan.seed, "prior"), source=lambda: latents,
            )  # fmt: skip
            settings |= {"class_prompt": list(prior.prompts), "prior_weight": prior.weight, "prior_rows": rows}
            if settings["prior"] != "self" or self.class_images is not None:
                prior.source, inputs["class_images"] = self._class_latents(opening, latents, prior.prompts, folders[1:])
        captions = [self.answers_to.of(item) for item in folder.items]
        return Material(latents=latents, captions=captions, prior=prior, settings=settings, inputs=inputs)

    def _prior(self, recipe: ImageRecipe) -> str:
        """Returns which prior is meant.

        Raises:
            DoesNotFit: a weight without a prior.
        """
        if self.prior is not None:
            return self.prior
        if self.class_images is not None:
            return "images"
        usual = recipe.prior
        if usual == "given":
            usual = "self" if self.class_prompts else "none"
        chosen = usual if self.class_prompts or self.likely_class else "none"
        if chosen == "none" and self.prior_weight:
            raise DoesNotFit("prior_weight is given without a class_prompt: give one, such as 'a photo of dog'")
        return chosen

    def _prior_prompts(self, opening: Opening[Base]) -> tuple[str, ...]:
        """Returns what the prior half is called."""
        if self.class_prompts:
            return self.class_prompts
        assert self.likely_class is not None, "checked with the prior"
        opening.say(f"class prompt of the prior: {self.likely_class!r}")
        return (self.likely_class,)

    def _class_latents(
        self, opening: Opening[Base], instance: Latents, prompts: tuple[str, ...], given: Sequence[ImageFolder]
    ) -> tuple[Callable[[], Latents], str]:
        """Returns what gives the class pictures, and what identifies them: those of a folder, or made by the base."""
        from studio.datasets.cache import cache_folder
        from studio.datasets.folder import read_folder

        if given:
            return lambda: instance.of(given[0].items), given[0].digest
        recipe, own = opening.recipe, opening.base.defaults
        assert isinstance(recipe, ImageRecipe), "the recipe of this task"
        steps, guidance = recipe.class_steps or own.steps, recipe.class_guidance or own.guidance
        made = ClassPictures(
            opening.base, prompts, self.class_count, instance.size, steps, guidance, seed=opening.plan.seed
        )

        def make() -> Latents:
            folder = made.make(cache_folder(opening.plan.cache), opening.say)
            return instance.of(read_folder(folder, captions=False, generated=True).items[: self.class_count])

        return make, f"{made.key()} x {self.class_count}"
