"""The settings of the loop itself, which are the same for every task."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from studio.config import check
from studio.errors import BadConfig

__all__ = ["FREE", "Plan"]

FREE: Final = frozenset(
    "checkpoint_every preview_every tensorboard device cache sharding offload offload_activations blocks_to_swap "
    "fused_backward_pass fit".split()
)
"""Fields that leave the adapter as it is (device: but for last bits), so a run may be resumed with other ones."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a training runs. ``None`` takes the recipe's value (:mod:`studio.trainers.recipes`).

    Attributes:
        steps: optimizer steps, >= 1.
        seed: decides everything that is drawn, the adapter's start included.
        learning_rate: of the denoiser's (or the only component's) adapter, > 0.
        batch_size: samples per forward pass, >= 1.
        accumulation: forward passes per optimizer step, >= 1.
        warmup: steps over which the rate rises linearly to its full value, >= 0.
        schedule: of the rate after the warm-up, ``"constant"`` or ``"cosine"`` (to zero at the last step).
        clip: largest norm of the gradient; 0 does not clip.
        weight_decay: AdamW's, >= 0.
        beta2: AdamW's decay of the squared gradients, in [0, 1).
        optimizer: ``"adamw"``; ``"lora-plus"``, AdamW with a higher rate for the side of a pair that starts at zero;
            ``"lora-fa"``, which trains that side alone (less memory: a layer's inputs are not kept); bitsandbytes'
            ``"adamw-8bit"``, moments in a quarter of the memory, and ``"paged-adamw"`` and ``"paged-adamw-8bit"``,
            which an accelerator may keep in the CPU's memory.
        rate_ratio: of lora-plus: that side's rate over the other's, > 0.
        embedding_rate: of lora-plus: the rate of pairs on embeddings, > 0.
        grow: steps done -> rank that the adapter then grows to; both rise. The optimizer's moments are kept.
        precision: ``"fp32"``, or ``"bf16"`` for products in bf16 with fp32 adapter tensors.
        ema: decay in [0, 1) of an exponential moving average of the adapter, which is then what is saved; 0 is off.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        checkpoint_every: steps between checkpoints; 0 writes one only when interrupted, and after the last step until
            the report is there.
        preview_every: steps between previews; 0 makes them only at the start and the end.
        tensorboard: also write TensorBoard curves into the run's folder.
        device: where to compute; None takes the best there is.
        offload_activations: keep what the backward pass needs in the machine's memory meanwhile: less of the device's,
            at the speed of the bus.
        blocks_to_swap: how many of the base's blocks wait in the machine's memory, two of which are on the device at a
            time: each is fetched when it computes, in both passes, while another one does. The same numbers.
        fused_backward_pass: each tensor of the adapter is stepped as soon as its gradient is complete, which is let go
            then. The same numbers; it asks for ``clip=0``, and for no ``accumulation`` and one process.
        sharding: of several processes, ``"none"``: each holds everything; ``"full"``: each a part of the base. By
            DeepSpeed ``"zero2"``: each a part of the gradients and moments; ``"zero3"``: a part of these and the base.
        offload: of zero2 and zero3, what rests in the machine's memory: ``"optimizer"``: gradients and moments, which
            are stepped there; ``"all"``: of zero3, the base too.
        fit: memory that there is, ``"12GB"``: a run that would take more is refused before its base is opened, with
            two ways that fit; None: nobody looks.
        cache: folder for latents, text embeddings and class pictures; None is the user's cache folder.

    Raises:
        BadConfig: a field with an impossible value.
    """

    steps: int | None = None
    seed: int = 0
    learning_rate: float | None = None
    batch_size: int | None = None
    accumulation: int = 1
    warmup: int | None = None
    schedule: Literal["constant", "cosine"] | None = None
    clip: float = 1.0
    weight_decay: float = 1e-2
    beta2: float | None = None
    optimizer: Literal["adamw", "lora-plus", "lora-fa", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"] = "adamw"
    rate_ratio: float = 16.0
    embedding_rate: float = 1e-6
    grow: Mapping[str, int] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.0
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100
    preview_every: int | None = None
    tensorboard: bool = False
    device: str | None = None
    offload_activations: bool = False
    blocks_to_swap: int = 0
    fused_backward_pass: bool = False
    sharding: Literal["none", "full", "zero2", "zero3"] = "none"
    offload: Literal["none", "optimizer", "all"] = "none"
    fit: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.grow, Mapping):  # TOML's keys are texts
            object.__setattr__(self, "grow", {str(step): rank for step, rank in self.grow.items()})
        check(self)
        for name in ("steps", "batch_size", "accumulation"):
            self._require(name, (getattr(self, name) or 1) >= 1 and getattr(self, name) != 0, "at least 1")
        for name in ("warmup", "checkpoint_every", "preview_every", "clip", "weight_decay", "blocks_to_swap"):
            self._require(name, 0 <= (getattr(self, name) or 0) < math.inf, "a finite number, at least 0")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        self._require("learning_rate", self.learning_rate is None or 0 < self.learning_rate < math.inf, "above 0")
        self._require("beta2", self.beta2 is None or 0 <= self.beta2 < 1, "in [0, 1)")
        self._require("ema", 0 <= self.ema < 1, "in [0, 1)")
        for name in ("rate_ratio", "embedding_rate"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._check_optimizer()
        self._check_sharding()
        self._check_memory()
        self._check_growth()

    def _check_optimizer(self) -> None:
        for name in ("rate_ratio", "embedding_rate"):
            changed = getattr(self, name) != Plan.__dataclass_fields__[name].default
            sound = self.optimizer == "lora-plus" or not changed
            self._require(name, sound, f"left out: it is of optimizer='lora-plus', this is {self.optimizer!r}")

    def _check_sharding(self) -> None:
        divided = self.sharding in ("zero2", "zero3")
        mine = f"left out: it is of sharding='zero2' or 'zero3', this is {self.sharding!r}"
        self._require("offload", divided or self.offload == "none", mine)
        some = "'optimizer' where sharding='zero2' keeps the base whole; sharding='zero3' can offload all"
        self._require("offload", self.sharding == "zero3" or self.offload != "all", some)
        wanted = f"'adamw' or 'lora-plus' where sharding={self.sharding!r} divides moments number by number"
        self._require("optimizer", not divided or self.optimizer in ("adamw", "lora-plus"), wanted)

    def _check_memory(self) -> None:
        whole = self.sharding == "none"
        mine = f"0 where sharding={self.sharding!r} divides weights and moments"
        self._require("blocks_to_swap", whole or not self.blocks_to_swap, mine)
        fused = self.fused_backward_pass
        self._require("fused_backward_pass", whole or not fused, mine.replace("0", "false", 1))
        clipped = f"false where clip={self.clip} asks for the norm of all gradients before the first step: set clip=0"
        self._require("fused_backward_pass", not (fused and self.clip), clipped)
        several = f"false where accumulation={self.accumulation} passes make one step"
        self._require("fused_backward_pass", not fused or self.accumulation == 1, several)

    def _check_growth(self) -> None:
        whole = not (self.grow and self.optimizer.endswith("8bit"))
        self._require("grow", whole, f"left out: the moments of {self.optimizer} are in blocks that cannot grow")
        wanted = "a table of whole numbers, steps = rank, in which the ranks rise with the steps"
        self._require("grow", all(step.isdecimal() and int(step) > 0 for step in self.grow), wanted)
        ranks = list(self.stages.values())
        rising = all(low < high for low, high in itertools.pairwise(ranks))
        self._require("grow", rising and all(rank >= 1 for rank in ranks), wanted)
        late = self.steps is not None and self.stages and max(self.stages) >= self.steps
        self._require("grow", not late, f"of steps before the last one, {self.steps}")

    @property
    def stages(self) -> dict[int, int]:
        """Steps done -> rank that is grown to then, in order.

        Example:
            >>> Plan(grow={400: 16, 200: 8}).stages
            {200: 8, 400: 16}
        """
        return dict(sorted((int(step), rank) for step, rank in self.grow.items()))

    def _require(self, name: str, sound: bool, wanted: str) -> None:
        if not sound:
            raise BadConfig(f"{name}={getattr(self, name)!r}: {name} must be {wanted}")

    def filled(self, **defaults: Any) -> Plan:
        """Returns the plan with its open fields taken from ``defaults``.

        Example:
            >>> Plan(steps=5).filled(steps=100, batch_size=2).steps
            5
        """
        open_fields = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_fields)

    def rate_factor(self, step: int) -> float:
        """Returns what the learning rates are multiplied by at ``step`` (steps done before it).

        ``(step + 1) / warmup`` while it warms up, then 1, or ``(1 + cos(π p)) / 2`` with p the fraction done since.

        Example:
            >>> plan = Plan(steps=10, warmup=2, schedule="cosine")
            >>> [round(plan.rate_factor(step), 3) for step in (0, 1, 2, 6, 9)]
            [0.5, 1.0, 1.0, 0.5, 0.038]
        """
        assert self.steps is not None and self.warmup is not None, "the plan has been filled"
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1))) / 2
