"""DreamBooth: one subject from a handful of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from studio.errors import BadConfig, DoesNotFit, nearest
from studio.trainers.image.latents import Pictures
from studio.trainers.image.prior import PRIORS, ClassPictures, Prior
from studio.trainers.image_task import ImageTask, Opened
from studio.trainers.loop.draws import Draws

if TYPE_CHECKING:
    from studio.datasets.folder import ImageItem

__all__ = ["DreamBooth"]

LEAD = re.compile(r"^(?:an?|the)?\s*(?:photo|photograph|picture|image|emoji|drawing|painting|portrait)\s+of\s+", re.I)


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

    kind: ClassVar[str] = "dreambooth"

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
        if not self.instance_prompt.strip():
            raise BadConfig("instance_prompt is empty: name the subject, such as 'a photo of sks dog'")
        if self.instance_prompt in self.class_prompts:
            raise BadConfig(
                f"instance_prompt and class_prompt are both {self.instance_prompt!r}, so nothing tells the subject "
                "from its class; put a rare word into the instance prompt, such as 'a photo of sks dog'"
            )
        if self.prior is not None and self.prior not in PRIORS:
            close = nearest(self.prior, PRIORS, 1)[0]
            raise BadConfig(f"prior={self.prior!r}: did you mean {close!r}? (known: {', '.join(PRIORS)})")
        if self.prior_weight is not None and not self.prior_weight >= 0:
            raise BadConfig(f"prior_weight={self.prior_weight!r} must be at least 0")
        if self.prior_rows is not None and self.prior_rows < 1:
            raise BadConfig(f"prior_rows={self.prior_rows!r} must be at least 1; prior='none' trains without a prior")
        if self.class_count < 1:
            raise BadConfig(f"class_count={self.class_count!r} must be at least 1")
        if self.prior in ("images", "generate", "self") and not (self.class_prompts or self.likely_class):
            raise BadConfig(f"prior={self.prior!r} needs a class_prompt, such as 'a photo of dog'")
        if self.prior == "images" and self.class_images is None:
            raise BadConfig("prior='images' needs class_images, a folder with pictures of the class")
        if self.class_images is not None and self.prior not in (None, "images", "self"):
            raise BadConfig(f"class_images are given and prior={self.prior!r} would not use them: drop one of the two")
        if self.class_images is not None and not (self.class_prompts or self.likely_class):
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
        lead, words = self.instance_prompt.strip(), self.trigger_words.split()
        if len(words) < 2:
            return None
        return lead[: len(lead) - len(self.trigger_words)] + " ".join(words[1:])

    @property
    def trigger_words(self) -> str:
        """The instance prompt without its "a photo of": the words that call up the subject."""
        return LEAD.sub("", self.instance_prompt.strip())

    def default_previews(self, captions: Sequence[str]) -> tuple[str, ...]:
        return (self.instance_prompt,)

    def read(self, opened: Opened) -> tuple[Pictures, list[str], Prior | None, dict[str, Any], dict[str, str]]:
        """See :meth:`ImageTask.read`."""
        from studio.datasets.cache import TensorCache
        from studio.datasets.folder import read_folder

        folder = read_folder(self.instance_images, captions=self.captions)
        opened.note_skipped(folder.skipped)
        cache = TensorCache(opened.cache / "tensors")
        pictures = Pictures(opened.base, folder.items, size=opened.size, crop=self.crop, flip=self.flip, cache=cache)
        inputs = {"instance_images": folder.digest}
        kind = self._prior(opened)
        settings: dict[str, Any] = {"instance_prompt": self.instance_prompt, "prior": kind}
        prior = None
        if kind != "none":
            prompts = self._prior_prompts(opened)
            weight = opened.recipe.prior_weight if self.prior_weight is None else self.prior_weight
            rows = (opened.recipe.prior_rows if self.prior_rows is None else self.prior_rows) or opened.plan.batch_size
            settings |= {"class_prompt": list(prompts), "prior_weight": weight, "prior_rows": rows}
            source, digest = self._source(kind, opened, pictures, prompts)
            inputs |= {"class_images": digest} if digest else {}
            prior = Prior(source, prompts, weight, kind == "self", Draws(opened.plan.seed, "prior"), rows)
        return pictures, [self._caption(item) for item in folder.items], prior, settings, inputs

    def _prior_prompts(self, opened: Opened) -> tuple[str, ...]:
        """Returns what the prior half is called."""
        classes = self.class_prompts
        if not classes:
            assert self.likely_class is not None, "checked with the kind of prior"
            classes = (self.likely_class,)
            opened.say(f"class prompt of the prior: {classes[0]!r}")
        return classes

    def _source(
        self, kind: str, opened: Opened, instance: Pictures, prompts: tuple[str, ...]
    ) -> tuple[Callable[[], Pictures], str]:
        """Returns what makes the pictures of the prior half, and what identifies them."""
        from studio.datasets.folder import read_folder

        if kind == "self" and self.class_images is None:
            return lambda: instance, ""
        if kind in ("images", "self"):
            assert self.class_images is not None, "checked when the task was made"
            given = read_folder(self.class_images, captions=False)
            return lambda: instance.of(given.items), given.digest
        made = ClassPictures(opened.base, prompts, self.class_count, opened.size, seed=opened.plan.seed)

        def make() -> Pictures:
            folder = made.make(opened.cache, opened.say)
            return instance.of(read_folder(folder, captions=False).items[: self.class_count])

        return make, f"{made.key()} x {self.class_count}"

    def _prior(self, opened: Opened) -> str:
        if self.prior is not None:
            return self.prior
        if self.class_images is not None:
            return "images"
        usual = opened.recipe.prior
        if usual == "given":
            usual = "self" if self.class_prompts else "none"
        chosen = usual if self.class_prompts or self.likely_class else "none"
        if chosen == "none" and self.prior_weight:
            raise DoesNotFit("prior_weight is given without a class_prompt: give one, such as 'a photo of dog'")
        return chosen

    def _caption(self, item: ImageItem) -> str:
        # the words of a folder like "10_sks dog" stand in for a prompt, and here there is one
        caption = None if item.caption_from == "folder" else item.caption
        if not caption:
            return self.instance_prompt
        words = caption.lower().replace(",", " ").split()
        if all(word in words for word in self.trigger_words.lower().split()):
            return caption
        return f"{self.instance_prompt}, {caption}"
