"""What can be trained: a *task* is a frozen description; opened with a plan, it is a *lesson* that the loop runs.

A new trainer is one file with a task. It decides what is drawn, what the loss is and what a preview shows; optimizer,
accumulation, checkpoints, resuming, guards, log and report are the loop's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from studio.adapters import AdapterConfig, Full
from studio.adapters.contract.mixed import Mixed
from studio.errors import DoesNotFit
from studio.families import components, family_in
from studio.planning.forecast import Forecast
from studio.trainers.loop.block_swap import BlockSwap
from studio.trainers.loop.exact_norms import ExactNorms
from studio.trainers.loop.mode import Loan, checkpoint_gradients
from studio.trainers.loop.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["AdapterLike", "Lesson", "Loss", "Say", "Task"]

Say = Callable[[str], None]
"""Takes one line for the user."""

AdapterLike = AdapterConfig | str | Path | Callable[[Any], AdapterConfig | None] | None
"""An adapter's config, a file with an adapter to train on from, what makes one of the recipe for the base, or None for
the recipe's own."""


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch.

    Args:
        total: the scalar to differentiate, the mean over the micro-batch.
        parts: scalars to log by name, detached.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Lesson(ABC):
    """An opened task: base and data in memory, every setting decided.

    Args:
        adapter: the adapter's config.
        name: the adapter's name.
        plan: the plan without open fields.
        rates: component -> learning rate; its keys are the components that must be trained.
        settings: the task's settings as decided, for ``run.toml``; a run is resumed only with the same ones.
        recorded: what ``run.toml`` also says and may change between resumes (paths, previews).
        inputs: what the run starts from (base, data), as name -> id or hash. They must be the same when it resumes.
        origin: what the adapter file says about its origin.
        notes: lines for the report: what was done to the data and why.
        start: the adapter file that it trains on from; None starts anew.
        call: words of the command line that use the adapter, before its file is named.
        head: paths of layers that are trained themselves, and saved with the adapter.
        foresee: makes the forecast of this training; None: none can be made.
    """

    adapter: AdapterConfig
    name: str
    plan: Plan
    rates: Mapping[str, float]
    settings: Mapping[str, Any]
    recorded: Mapping[str, Any]
    inputs: Mapping[str, str]
    origin: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    start: Path | None = None
    call: Sequence[str] = ()
    head: Sequence[str] = ()
    foresee: Callable[[], Forecast] | None = None

    def __post_init__(self) -> None:
        self._loan = Loan(components(self.model).values())
        self._norms: ExactNorms | None = None
        self.swap = self._swapped() if self.plan.blocks_to_swap else None

    def _swapped(self) -> BlockSwap:
        """Lets blocks of what is trained first wait in the CPU's memory.

        Raises:
            DoesNotFit: it has fewer blocks, they are quantised in a way that cannot be fetched, or the adapter's start
                is computed from weights and data, which are in two places.
        """
        name, plan = next(iter(self.rates)), self.plan
        root = components(self.model)[name]
        swap = BlockSwap(root, plan.blocks_to_swap, name=name or "the model", checkpointed=plan.gradient_checkpointing)
        if self.attached.data_driven and swap.device.type != "cpu":
            swap.close()
            raise DoesNotFit(
                f"blocks_to_swap: {type(self.attached).__name__} starts from weights and data, which would be in two "
                "places: take another init, or leave blocks_to_swap out"
            )
        return swap

    @property
    @abstractmethod
    def model(self) -> Any:
        """What the adapter is attached to, a module or a diffusers pipeline."""

    @property
    def attached(self) -> AdapterConfig:
        """The config of all that is trained: the adapter, and the change of the layers of the head."""
        return Mixed(parts=(self.adapter, Full(targets=tuple(self.head)))) if self.head else self.adapter

    def prepare(self, say: Say) -> None:
        """Does the slow part once, while the base is still bare: caches, class pictures.

        Here it switches gradient checkpointing on where the plan says so, and lets the norms of what is quantised
        compute in fp32.
        """
        parts = components(self.model)
        self._norms = ExactNorms(parts[component] for component in self.rates)
        if self._norms.count:
            say(f"the base is quantised: its {self._norms.count} norms compute in fp32 while it is trained")
        family = family_in(parts)
        for component in self.rates if self.plan.gradient_checkpointing else ():
            own = family.checkpointed if family is not None and component == family.denoiser else None
            checkpoint_gradients(parts[component], True, own() if own else None)
        if self.swap is not None:
            self.swap.rest()
            if self.swap.device.type == "cpu":
                say("blocks_to_swap saves an accelerator's memory; on a CPU it costs time and gains nothing")

    @abstractmethod
    def loss(self, numbers: Sequence[int]) -> Loss:
        """Computes the loss of the samples with these running numbers; a pure function of them and of the weights."""

    def after_step(self, step: int) -> None:  # noqa: B027  (most keep nothing between steps)
        """Is called after each optimizer step with the number of steps done."""

    @abstractmethod
    def preview(self) -> Sequence[Image | str]:
        """Makes the preview pictures or texts with the blend that is on; always of the same prompts and seeds."""

    @abstractmethod
    def captions(self) -> list[str]:
        """Returns the caption of each preview."""

    def measure(self) -> Mapping[str, float]:
        """Measures what was learned, always in the same way: on what is held out, or on the previews just made.

        Empty where nothing can be measured.
        """
        return {}

    def examples(self) -> Sequence[tuple[str, Image]]:
        """Returns what is trained on as it is seen, with its name, for the report; empty where that is no picture."""
        return []

    def use(self, adapter: Path) -> list[str]:
        """Returns the command that uses an adapter file; no word where none does."""
        return [*self.call, "--adapter", str(adapter)] if self.call else []

    def close(self) -> None:
        """Gives the base back as it was."""
        if self.swap is not None:
            self.swap.close()
        if self._norms is not None:
            self._norms.give_back()
        self._loan.give_back()


class Task(Protocol):
    """A frozen description of what is learned; ``task_name`` is its name in files and on the command line."""

    task_name: ClassVar[str]

    def open(self, adapter: AdapterLike, plan: Plan, say: Say) -> Lesson:
        """Reads the data, opens the base, decides every open setting; what needs no base is checked before that.

        Args:
            adapter: the adapter's config, or a file with one to train on from; None takes the recipe's.
            plan: the loop's settings; open fields are filled from the recipe.
            say: takes lines for the user.

        Raises:
            UsageError: anything that is wrong about the request.
        """
