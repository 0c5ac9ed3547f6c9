"""What a forecast is asked about: a base, and the settings of a training that decide what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch

from studio.adapters import AdapterConfig
from studio.config import check
from studio.device import dtype_named
from studio.errors import BadConfig, UnknownName, nearest
from studio.limits import limit, too_many
from studio.planning.sharding import SHARDINGS
from studio.quantization.wishes import read_wishes
from studio.trainers.image.prior import PRIORS
from studio.trainers.loop.optimizer import OPTIMIZERS
from studio.trainers.loop.plan import Plan
from studio.trainers.recipes import Recipe, usual_adapter

__all__ = ["ATTENTION_KINDS", "OF_THE_LOOP", "OPTIMIZER_KINDS", "Asked"]

ATTENTION_KINDS: Final = ("sdpa", "eager", "xformers")
OPTIMIZER_KINDS: Final = tuple(OPTIMIZERS)

OF_THE_LOOP: Final = (
    "batch_size", "accumulation", "gradient_checkpointing", "ema", "offload_activations", "blocks_to_swap",
    "fused_backward_pass", "sharding", "offload",
    "precision", "optimizer",
)  # fmt: skip
"""The fields that are the loop's settings (:class:`~studio.trainers.loop.plan.Plan`) by the same names."""

_CHOICES: Final = {
    "attention": ATTENTION_KINDS, "optimizer": OPTIMIZER_KINDS, "sharding": tuple(SHARDINGS),
    "offload": ("none", "optimizer", "all"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings that decide what a training takes; ``None`` is the recipe's value.

    Attributes:
        task: ``"dreambooth"``, ``"style"``, or one of the language tasks (``studio.trainers.TEXT_TASKS``); None: by
            the base.
        own: the task's own settings that decide what it takes: ``{"group": 32}`` of embed; those that are left out
            have the task's defaults.
        adapter: the adapter's config, or what makes one of the recipe; None is the recipe's.
        whole: every weight of what is trained is trained itself, without an adapter.
        resolution: width and height in pixels; None: the base's own.
        length: tokens of a sample, of each of its texts where it has several, or of a caption where its family pads
            none. answer: of a seq2seq's answer.
        batch_size: samples of a forward pass. accumulation: forward passes of a step.
        precision: as in a training, ``"fp32"`` or ``"bf16"`` products. dtype: the base's; None: that of its files, else
            bf16. quantize: ``"nf4"``, ``"nf4,text_encoder_2=int8"``.
        gradient_checkpointing, ema: as in a training.
        attention: ``"sdpa"``, ``"xformers"`` (which keep no scores) or ``"eager"`` (which keeps them).
        optimizer: as in a training, ``"adamw"``, ``"adamw-8bit"``, ...
        text_encoder: whether the text encoders are adapted too.
        crop: ``"random"``: the autoencoder stays on the device, and encodes each draw.
        prior: of DreamBooth; ``"images"`` and ``"generate"`` double the rows, ``"self"`` adds a pass without gradients.
        cached: whether encoders and autoencoder leave the device after their outputs are kept.
        keep_gradients: gradients are zeroed, not dropped, between steps.
        previews: whether the run draws some.
        offload: what rests in the CPU's memory: ``"optimizer"``, or ``"all"``, the base too. offload_activations: what
            the backward pass needs rests there too.
        blocks_to_swap, fused_backward_pass: as in a training.
        processes: how many share the work. sharding: a key of :data:`studio.planning.sharding.SHARDINGS`.
        corrected: whether runs that were measured on this machine correct it.

    Raises:
        BadConfig: a value that is impossible.
        UnknownName: a word that is not known.

    Example:
        >>> Asked(optimizer="adamw-8bits")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no optimizer is named 'adamw-8bits'; did you mean 'adamw-8bit'? (known: adamw,
        lora-plus, lora-fa, adamw-8bit, paged-adamw, paged-adamw-8bit)
    """

    task: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    adapter: AdapterConfig | Callable[[Any], AdapterConfig | None] | None = None
    whole: bool = False
    resolution: tuple[int, int] | int | None = None
    length: int | None = None
    answer: int = 32
    batch_size: int | None = None
    accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    dtype: str | None = None
    quantize: str | None = None
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    optimizer: str = "adamw"
    ema: float = 0.0
    text_encoder: bool | None = None
    crop: Literal["center", "random"] = "center"
    prior: str | None = None
    cached: bool = True
    keep_gradients: bool = False
    previews: bool = True
    offload: str = "none"
    offload_activations: bool = False
    blocks_to_swap: int = 0
    fused_backward_pass: bool = False
    processes: int = 1
    sharding: str = "none"
    corrected: bool = True

    def __post_init__(self) -> None:
        check(self)
        for name, least in (("batch_size", 1), ("accumulation", 1), ("processes", 1), ("length", 2), ("answer", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadConfig(f"{name}={value!r} must be a whole number, at least {least}")
        if not 0 <= self.ema < 1:
            raise BadConfig(f"ema={self.ema!r} must be in [0, 1)")
        self._check_words()
        sides = (self.resolution,) if isinstance(self.resolution, int) else self.resolution or ()
        if any(side < 1 or side > limit("side") for side in sides):
            raise BadConfig(f"resolution={self.resolution!r}: sides are whole numbers from 1 on, {too_many('side')}")
        if self.whole and self.quantize:
            raise BadConfig("whole=True trains the weights themselves, which a quantised base does not let: take one")

        self._check_memory()

    def _check_memory(self) -> None:
        alone = self.processes == 1 and self.accumulation == 1 and self.sharding == "none"
        if self.fused_backward_pass and not alone:
            raise BadConfig(
                "fused_backward_pass=True steps before all gradients are there: one process, one pass a step"
            )
        if self.blocks_to_swap < 0 or (self.blocks_to_swap and (self.whole or self.sharding != "none")):
            raise BadConfig(
                f"blocks_to_swap={self.blocks_to_swap!r}: a number of blocks of a base that is frozen, and not divided "
                "among processes"
            )

    def _check_words(self) -> None:
        known = {**_CHOICES, "prior": PRIORS}
        for name, words in known.items():
            value = getattr(self, name)
            if value is not None and value not in words:
                close = nearest(str(value), words, 1)[0]
                raise UnknownName(f"no {name} is named {value!r}; did you mean {close!r}? (known: {', '.join(words)})")
        if self.dtype is not None:
            dtype_named(self.dtype)
        read_wishes(self.quantize, packages=False)

    @property
    def rows(self) -> int:
        """Samples that one process computes together."""
        return -(-(self.batch_size or 1) // self.processes)

    def type_of(self, files: torch.dtype | None) -> torch.dtype:
        """Returns the type of the base's weights.

        Args:
            files: what its files hold, where that is known.
        """
        if self.dtype is not None:
            return dtype_named(self.dtype)
        if files is torch.float16:  # whose gradients underflow: a training widens it
            return torch.bfloat16
        return files or torch.bfloat16

    def config(self, recipe: Recipe) -> AdapterConfig:
        """Returns the adapter's config on a base with that recipe."""
        made = self.adapter
        if made is not None and not isinstance(made, AdapterConfig):
            made = made(recipe)
        return made or usual_adapter(recipe)

    def loop(self, recipe: Recipe) -> Plan:
        """Returns the settings of the loop of one process."""
        own = self.optimizer if self.optimizer in ("lora-plus", "lora-fa") else "adamw"
        return Plan(
            steps=recipe.steps, batch_size=self.rows, accumulation=self.accumulation, precision=self.precision,
            ema=self.ema, gradient_checkpointing=self.gradient_checkpointing, learning_rate=recipe.learning_rate,
            optimizer=own,  # type: ignore[arg-type]
            clip=0.0 if self.fused_backward_pass else 1.0,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Returns what differs from the defaults and is of the training, by name, but for the adapter."""
        found = {}
        for name, one in self.__dataclass_fields__.items():
            value = getattr(self, name)
            if value != one.default and name not in ("adapter", "corrected", "own"):
                found[name] = value
        return found | dict(self.own)
