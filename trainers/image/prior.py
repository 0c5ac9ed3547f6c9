"""Prior preservation: what keeps the base's idea of the class while it learns one member of it.

==========  =========================================================================================================
none        no second half of the loss
images      class pictures from a folder, predicted as usual
generate    the same with pictures that the base made once; they are kept under a key of all that decides them
self        no pictures: under the class prompt the adapted base shall predict what the bare base predicts
==========  =========================================================================================================

``self`` asks for the base's behaviour directly, where class pictures ask for it through their noise; it costs one
forward pass without gradients per step.

References:
    | DreamBooth: Fine Tuning Text-to-Image Diffusion Models (Ruiz et al., 2022), arXiv:2208.12242
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor

from studio.families import Base
from studio.trainers.image.latents import Latents
from studio.trainers.loop.draws import Draws
from studio.trainers.loop.task import Say

__all__ = ["PRIORS", "ClassPictures", "Prior"]

PRIORS: Final = ("none", "images", "generate", "self")


@dataclass
class Prior:
    """The second half of the loss.

    Args:
        source: gives what is noised, once, when the run is prepared: class pictures, or for ``self`` the instance
            pictures.
        prompts: class prompts; each sample draws one.
        weight: λ, the half's weight against the instance half.
        own: the target is the base's own prediction (``self``) instead of the noise that was added.
        draws: the half's draws.
        rows: rows that go with ``batch`` instance rows. batch: instance rows of a micro-batch.
    """

    source: Callable[[], Latents]
    prompts: tuple[str, ...]
    weight: float
    own: bool
    draws: Draws
    rows: int
    batch: int

    @cached_property
    def latents(self) -> Latents:
        """What is noised."""
        return self.source()

    def numbers(self, instance: Sequence[int]) -> Sequence[int]:
        """Returns the numbers of the prior samples that go with consecutive instance samples, perhaps none."""
        return range(instance[0] * self.rows // self.batch, (instance[-1] + 1) * self.rows // self.batch)

    def share(self, losses: Tensor, instance: int) -> Tensor:
        """Returns the part of the half's mean loss that goes with so many instance samples.

        Args:
            losses: of the prior samples of :meth:`numbers`, ``(N,)``. instance: instance samples.
        """
        wanted = instance * self.rows / self.batch
        return losses.mean() if len(losses) == wanted else losses.sum() / wanted

    def texts(self, numbers: Sequence[int]) -> list[str]:
        """Returns the class prompt of each sample."""
        if len(self.prompts) == 1:
            return [self.prompts[0]] * len(numbers)
        return [self.prompts[int(self.draws.uniform(n, "prompt") * len(self.prompts))] for n in numbers]


@dataclass(frozen=True)
class ClassPictures:
    """Class pictures made by the base, once.

    Args:
        base: the bare base.
        prompts: class prompts; picture i takes prompt i modulo their number.
        count: how many pictures, >= 1.
        size: width and height in pixels.
        steps: sampling steps.
        guidance: guidance scale.
        seed: picture i has the seed ``seed + i``.
    """

    base: Base
    prompts: tuple[str, ...]
    count: int
    size: tuple[int, int]
    steps: int
    guidance: float
    seed: int = 0

    def key(self) -> str:
        """Returns the name of the folder: equal for equal base, prompts, seed and settings, and only then."""
        from studio.datasets.cache import content_key

        base = self.base.fingerprint
        return content_key("class", base, self.prompts, self.size, self.steps, self.guidance, self.seed)[:32]

    def make(self, cache: Path, say: Say) -> Path:
        """Returns a folder under ``cache`` whose first ``count`` pictures are these; makes those that are missing.

        A picture depends on its own seed and prompt only, so an interrupted call goes on where it stopped, and a
        larger ``count`` later reuses the first ones.
        """
        from studio.pipelines import ImagePipeline, escape_prompt, save_png

        folder = cache / "class" / self.key()
        missing = [index for index in range(self.count) if not (folder / f"{index:05d}.png").is_file()]
        if not missing:
            return folder
        say(f"making {len(missing)} class pictures of {', '.join(map(repr, self.prompts))} (kept in {folder})")
        pipe = ImagePipeline.open(self.base)
        width, height = self.size
        for index in missing:
            prompt = self.prompts[index % len(self.prompts)]
            (picture,) = pipe.generate(
                escape_prompt(prompt), blend={}, seeds=[self.seed + index], steps=self.steps, guidance=self.guidance,
                width=width, height=height,
            )  # fmt: skip
            save_png(picture, folder / f"{index:05d}.png")
        return folder
