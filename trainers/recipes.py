"""The defaults: everything that is not one of the few facts (base, data, prompt) is decided here.

One recipe per task and size of base. Where the numbers come from is said beside them; real photographs on a full-size
base need other rates than drawings on a small one, so the two never share a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from studio.adapters import METHODS, AdapterConfig
from studio.families import Base
from studio.families.causal import LanguageBase

__all__ = ["RECIPES", "SMALL_BASE", "ImageRecipe", "Recipe", "recipe_for", "recipes_of"]

SMALL_BASE: Final = 100_000_000
"""Denoisers and language models with fewer parameters than this are *small* (the embedded bases have 8.75 and 2.2
million), others *full*."""

SHORT: Final = 100
"""Runs of fewer steps have previews at the start and the end alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults of one task on one size of base.

    Attributes:
        method: name of the adapter method.
        rank: its rank.
        targets: its targets.
        learning_rate: of the denoiser's (or the only component's) adapter.
        steps, batch_size, schedule, beta2: of the loop.
        warmup: fraction of the steps over which the rates rise.
        previews: how many there are between the start and the end of a run of at least 100 steps; they cost a few
            percent of its time on a small base, and a minute each on a full one without an accelerator.
    """

    method: str = "lora"
    rank: int = 8
    targets: str = "attention"
    learning_rate: float
    steps: int
    batch_size: int
    warmup: float = 0.05
    schedule: str = "cosine"
    beta2: float = 0.999
    previews: int = 0

    def preview_every(self, steps: int) -> int:
        """Returns the steps between previews of a run; 0 makes them at the start and the end alone."""
        return steps // (self.previews + 1) if self.previews and steps >= SHORT else 0

    def adapter(self) -> AdapterConfig:
        """Returns the adapter's config."""
        return METHODS[self.method](rank=self.rank, targets=self.targets)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """What tasks on diffusion bases have besides.

    Attributes:
        text_encoder: whether the text encoder is adapted too.
        text_encoder_learning_rate: the rate there.
        weighting: name of the loss weighting.
        prior: of DreamBooth; ``"given"`` is ``"self"`` where a class prompt is given, else ``"none"``.
        prior_weight: λ of the prior half.
        prior_rows: rows of the prior half per micro-batch; None: as many as instance rows.
    """

    text_encoder: bool
    text_encoder_learning_rate: float
    weighting: str
    prior: str = "given"
    prior_weight: float = 1.0
    prior_rows: int | None = None


RECIPES: Final[dict[tuple[str, str], Recipe]] = {
    # Small base: measured on the embedded base with subjects that it has never seen, on backgrounds that no instance
    # picture has; docs/dreambooth.md shows the frontier. 1200 steps without a prior are better at the subject
    # than 600 with one in the same time, and lose only a few red backgrounds, of brown subjects at guidance 3.
    ("dreambooth", "small"): ImageRecipe(
        rank=16,
        targets="attention+mlp",
        learning_rate=2e-3,
        text_encoder=False,
        text_encoder_learning_rate=1e-3,
        steps=1200,
        batch_size=4,
        previews=3,
        beta2=0.99,
        weighting="min-snr-offset",
    ),
    ("style", "small"): ImageRecipe(
        rank=16,
        targets="attention+mlp",
        learning_rate=2e-3,
        text_encoder=False,
        text_encoder_learning_rate=1e-3,
        steps=600,
        batch_size=4,
        previews=3,
        beta2=0.99,
        weighting="min-snr-offset",
    ),
    # Full base (Stable Diffusion 1.5 and up): the values in common use for photographs (diffusers' and kohya's examples
    # train LoRA at 1e-4, the text encoder at half of that or less); not measured here, where no such base is at hand.
    ("dreambooth", "full"): ImageRecipe(
        rank=16,
        learning_rate=1e-4,
        text_encoder=False,
        text_encoder_learning_rate=5e-5,
        steps=800,
        batch_size=1,
        weighting="min-snr",
    ),
    ("style", "full"): ImageRecipe(
        rank=16,
        learning_rate=1e-4,
        text_encoder=False,
        text_encoder_learning_rate=5e-5,
        steps=1500,
        batch_size=1,
        weighting="min-snr",
    ),
    # Small language base: measured on the embedded base with questions about things that no sample names;
    # docs/language.md has the numbers.
    ("causal-lm", "small"): Recipe(targets="attention+mlp", learning_rate=4e-3, steps=300, batch_size=16),
    # Full language base: the values in common use for instruction data (QLoRA, arXiv:2305.14314, trains LoRA on all
    # linear layers at 2e-4 with 16 samples per step); not measured here, where no such base is at hand.
    ("causal-lm", "full"): Recipe(rank=16, targets="attention+mlp", learning_rate=2e-4, steps=500, batch_size=16),
}
"""(kind of task, size of base) -> defaults."""


def recipes_of(task_name: str) -> list[Recipe]:
    """Returns the defaults of a task on bases of all sizes."""
    return [recipe for (name, _), recipe in RECIPES.items() if name == task_name]


def recipe_for(task_name: str, base: Base | LanguageBase) -> Recipe:
    """Returns the defaults of a task on a base."""
    return RECIPES[task_name, "small" if base.parameters < SMALL_BASE else "full"]
