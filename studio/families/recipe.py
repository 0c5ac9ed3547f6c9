"""What a family's adapters are usually trained with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SMALL_BASE", "ImageRecipe", "Recipe"]

SMALL_BASE = 100_000_000
"""Denoisers and language models with fewer parameters than this are *small* (the embedded bases have 8.75 and 2.2
million), others *full*."""

SHORT = 100
"""Runs of fewer steps have previews at the start and the end alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults of one task on one sort of base.

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


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """What tasks on image bases have besides.

    Attributes:
        text_encoder: whether the text encoders are adapted too.
        text_encoder_learning_rate: the rate there.
        weighting: name of the loss weighting.
        density: name of the density of the times that are trained.
        shifted: whether a flow's times are shifted as when it draws, or evenly spread.
        class_steps, class_guidance: how class pictures are drawn; None: as the base draws.
        prior: of DreamBooth; ``"given"`` is ``"self"`` where a class prompt is given, else ``"none"``.
        prior_weight: λ of the prior half.
        prior_rows: rows of the prior half per micro-batch; None: as many as instance rows.
    """

    text_encoder: bool = False
    text_encoder_learning_rate: float
    weighting: str = "none"
    density: str = "uniform"
    shifted: bool = False
    class_steps: int | None = None
    class_guidance: float | None = None
    prior: str = "given"
    prior_weight: float = 1.0
    prior_rows: int | None = None
