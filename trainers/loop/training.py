"""The training loop. There is one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor

from studio.adapters import AdapterConfig, adapters, attach, detach, grow, state
from studio.adapters.contract.starts import padded
from studio.adapters.grow import rehearse_growth
from studio.adapters.training import layers, on_step, penalty, scratch
from studio.errors import DoesNotFit
from studio.families import components
from studio.trainers.loop import checkpoint, report
from studio.trainers.loop.draws import sample_numbers
from studio.trainers.loop.guard import NotFinite, check_moved, check_trainable, find_not_finite, interruptible
from studio.trainers.loop.log import Log, console
from studio.trainers.loop.mode import accelerator_for, chance, training_mode
from studio.trainers.loop.optimizer import OPTIMIZERS, Average, Work, hand_on, set_rates
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.preview import save_previews
from studio.trainers.loop.run import Run, RunFolder, claim
from studio.trainers.loop.task import Lesson, Task

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["train"]

STATE_SIZE: Final = 3  # a checkpoint holds each number and AdamW's two moments of it
SPARE: Final = 16 * 2**20  # bytes for log, previews and report
CALIBRATION_SAMPLES: Final = 32  # drawn samples that a start from data sees
CHECKED_STEP: Final = 2  # a factor that starts at zero lets its partner move from the second step on


def train(
    task: Task,
    *,
    output: str | os.PathLike[str],
    adapter: AdapterConfig | None = None,
    steps: int | None = None,
    seed: int = 0,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    accumulation: int = 1,
    warmup: int | None = None,
    schedule: Literal["constant", "cosine"] | None = None,
    clip: float = 1.0,
    weight_decay: float = 1e-2,
    beta2: float | None = None,
    optimizer: Literal["adamw", "lora-plus", "lora-fa"] = "adamw",
    rate_ratio: float = 16.0,
    embedding_rate: float = 1e-6,
    grow: Mapping[int, int] | Mapping[str, int] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    ema: float = 0.0,
    gradient_checkpointing: bool = False,
    checkpoint_every: int = 100,
    preview_every: int | None = None,
    tensorboard: bool = False,
    device: str | None = None,
    cache: str | None = None,
    quiet: bool = False,
) -> Run:
    """Trains an adapter.

    The same call again goes on where an interrupted run stopped, bit for bit; for a finished run it returns the run.

    Args:
        task: what is learned: :class:`~studio.trainers.DreamBooth`, :class:`~studio.trainers.Style`, ...
        output: the run's folder, new, empty, or with this very run.
        adapter: the adapter's config; None takes the recipe's.
        steps, seed, learning_rate, batch_size, accumulation, warmup, schedule, clip, weight_decay, beta2, optimizer,
            rate_ratio, embedding_rate, grow, precision, ema, gradient_checkpointing, checkpoint_every, preview_every,
            tensorboard, device, cache: see :class:`~studio.trainers.Plan`; None takes the recipe's value.
        quiet: print nothing.

    Returns:
        The run: the adapter's file, the report, the losses.

    Raises:
        UsageError: whatever is wrong about the request, before anything is trained.
        NothingTrained: the adapter, or a part of it, would not be trained.
        NotFinite: the loss or a gradient became NaN or infinite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step was finished and a checkpoint written.
    """
    plan = Plan(
        steps=steps, seed=seed, learning_rate=learning_rate, batch_size=batch_size, accumulation=accumulation,
        warmup=warmup, schedule=schedule, clip=clip, weight_decay=weight_decay, beta2=beta2, optimizer=optimizer,
        rate_ratio=rate_ratio, embedding_rate=embedding_rate, grow={str(at): rank for at, rank in (grow or {}).items()},
        precision=precision, ema=ema, gradient_checkpointing=gradient_checkpointing,
        checkpoint_every=checkpoint_every, preview_every=preview_every, tensorboard=tensorboard, device=device,
        cache=cache,
    )  # fmt: skip
    out = console(quiet)
    with claim(output) as folder:
        lesson = task.open(adapter, plan, partial(out.print, markup=False))
        try:
            settings = folder.settings(lesson)
            if folder.check(settings):
                out.print(f"the run in {folder.folder} is finished: {folder.adapter}", markup=False)
                return folder.result(already=True)
            return Training(lesson, folder, out).run(settings)
        finally:
            if lesson.name in adapters(lesson.model):
                detach(lesson.model, lesson.name)
            lesson.close()


class Training:
    """One run from its first, or next, step to the report.

    Args:
        lesson: the opened task.
        folder: the run's folder, held by this process.
        out: where lines for the user go.
    """

    def __init__(self, lesson: Lesson, folder: RunFolder, out: Console) -> None:
        self.lesson, self.folder, self.out, self.plan = lesson, folder, out, lesson.plan
        assert self.plan.steps is not None and self.plan.batch_size is not None, "the plan has been filled"
        self.steps, self.batch_size = self.plan.steps, self.plan.batch_size

    def run(self, settings: Mapping[str, Any]) -> Run:
        """Trains to the end."""
        self._prepare()
        self.folder.begin(settings)
        first = self._resume()
        losses = self.folder.rewind(first)
        say = partial(self.out.print, markup=False)
        if first:
            say(f"going on after step {first} of {self.steps}")
        else:
            self._preview(0)
        curves = self.folder.folder / "tensorboard" if self.plan.tensorboard else None
        log = Log(
            self.folder.log, total=self.steps, first=first, out=self.out, device=self.device, tensorboard=curves
        )  # fmt: skip
        with training_mode(self.modules), interruptible() as request, log:
            for done in range(first + 1, self.steps + 1):
                figures = self._step(done)
                if done in self.plan.stages:
                    log.say(self._grow(self.plan.stages[done]))
                losses.append(figures["loss"])
                log.step(done, figures)
                due = self.plan.checkpoint_every and done % self.plan.checkpoint_every == 0
                if request.name is not None or (due and done < self.steps):
                    self._save(done)
                if request.name is not None and done < self.steps:
                    log.say(f"stopped by {request.name} after step {done}; the same command goes on from there")
                    raise KeyboardInterrupt
                if self.plan.preview_every and done % self.plan.preview_every == 0 and done < self.steps:
                    self._preview(done)
        return self._finish(losses, settings)

    def _prepare(self) -> None:
        lesson, plan = self.lesson, self.plan
        lesson.prepare(partial(self.out.print, markup=False))
        parts = components(lesson.model)
        self.modules = [parts[name] for name in lesson.rates]
        self.device = next(self.modules[0].parameters()).device
        self.accelerator = accelerator_for(plan.precision, self.device)
        found = attach(
            lesson.model, lesson.adapter, name=lesson.name, seed=plan.seed,
            components=[name for name in lesson.rates if name] or None,
            calibrate=self._calibrate if lesson.adapter.data_driven else None,
        )  # fmt: skip
        check_trainable(state(lesson.model, lesson.name), list(lesson.rates))
        on_step(lesson.model, lesson.name, step=0, steps=self.steps)
        most = self._rehearse()
        self._take_hold()
        self.start = {key: tensor.detach().clone() for key, tensor in self.trained.items()}
        self.average = Average(self.moving, plan.ema)
        kept = (*self.tensors.values(), *self.scratch.values())
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        self.folder.probe(math.ceil(size * most) * (1 + checkpoint.KEPT * STATE_SIZE) + SPARE)
        numbers = sum(tensor.numel() for tensor in self.trained.values())
        self.out.print(f"training {numbers:,} numbers in {len(found.sites)} layers", markup=False)

    def _calibrate(self, model: Any) -> None:
        """Runs the task's own loss over its first samples, for a start that is made from data."""
        for step in range(math.ceil(CALIBRATION_SAMPLES / self.batch_size)):
            numbers = sample_numbers(step, 0, self.batch_size, 1)
            with chance(self.plan.seed, numbers[0], self.device), self.accelerator.autocast():
                self.lesson.loss(numbers)

    def _take_hold(self) -> None:
        """Looks up the adapter's tensors as they are now, and makes the optimizer over them."""
        lesson = self.lesson
        parts = layers(lesson.model, lesson.name)
        self.tensors = state(lesson.model, lesson.name)
        self.scratch = scratch(lesson.model, lesson.name)
        self.optimizer = OPTIMIZERS[self.plan.optimizer](Work(self.tensors, parts, lesson.rates, self.plan))
        self.trained = {key: tensor for key, tensor in self.tensors.items() if tensor.requires_grad}
        driven = lesson.adapter.adapter.driven
        self.moving = {k: t for k, t in self.tensors.items() if k in self.trained or k.rpartition(".")[2] in driven}

    def _rehearse(self) -> float:
        """Finds out before step 1 whether the adapter can grow as planned; returns by how much it grows."""
        ranks, config = list(self.plan.stages.values()), self.lesson.adapter
        if not ranks:
            return 1.0
        if config.adapter.scratch:
            raise DoesNotFit(f"{type(config).__name__} decides about its ranks itself while it trains; leave grow out")
        for rank in (ranks[0], ranks[-1]):
            rehearse_growth(self.lesson.model, self.lesson.name, rank)
        return ranks[-1] / getattr(config, "rank", ranks[-1])

    def _grow(self, rank: int) -> str:
        """Lets the adapter grow, and with it what is known of its tensors; returns a line that says so."""
        optimizer, start, average = self.optimizer, self.start, self.average
        found = grow(self.lesson.model, self.lesson.name, rank, seed=self.plan.seed)
        self._take_hold()
        hand_on(optimizer, self.optimizer)
        self.start = {key: padded(start[key], tensor) for key, tensor in self.trained.items()}
        self.average = average.grown(self.moving)
        return f"the adapter has grown to rank {rank}: {found.parameters:,} numbers are trained"

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the steps that it has done."""
        found = checkpoint.newest(self.folder.folder)
        if found is None:
            return 0
        for after, rank in self.plan.stages.items():
            if after <= found.step:
                self._grow(rank)
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                tensor.copy_(found.tensors[key])
            for key, tensor in self.scratch.items():
                tensor.copy_(found.scratch[key])
        self.average.load(found.average)
        self.optimizer.load_state_dict(dict(found.optimizer))
        return found.step

    def _step(self, done: int) -> dict[str, float]:
        """Does the step after which ``done`` steps are done."""
        plan, totals = self.plan, {"loss": 0.0}
        rate = set_rates(self.optimizer, plan.rate_factor(done - 1))
        for micro in range(plan.accumulation):
            numbers = sample_numbers(done - 1, micro, self.batch_size, plan.accumulation)
            with chance(self.plan.seed, numbers[0], self.device), self.accelerator.autocast():
                loss = self.lesson.loss(numbers)
            value = float(loss.total.detach())
            if not math.isfinite(value):
                raise self._not_finite(done, f"the loss is {value}", numbers)
            extra = penalty(self.lesson.model, self.lesson.name)
            total = loss.total if extra is None else loss.total + extra
            self.accelerator.backward(total / plan.accumulation)
            totals["loss"] += value / plan.accumulation
            for name, part in loss.parts.items():
                totals[name] = totals.get(name, 0.0) + float(part) / plan.accumulation
        norm = float(self.accelerator.clip_grad_norm_(self.trained.values(), plan.clip or math.inf))
        if not math.isfinite(norm):
            raise self._not_finite(done, f"the gradient's norm is {norm}", numbers)
        self.optimizer.step()
        if done == CHECKED_STEP or done == self.steps < CHECKED_STEP:
            check_moved(self.start, self.tensors, done)
        on_step(self.lesson.model, self.lesson.name, step=done, steps=self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(done)
        self.lesson.after_step(done)
        return {**totals, "learning_rate": rate, "gradient_norm": norm}

    def _not_finite(self, done: int, what: str, numbers: range) -> NotFinite:
        def again() -> Tensor:
            with chance(self.plan.seed, numbers[0], self.device), self.accelerator.autocast():
                return self.lesson.loss(numbers).total

        where = find_not_finite(self.lesson.model, self.tensors, again)
        found = checkpoint.newest(self.folder.folder)
        last = f"the last good checkpoint is that of step {found.step}" if found else "there is no checkpoint yet"
        return NotFinite(
            f"step {done}: {what}; the first that is not finite is {where}; {last}: lower the learning rate, or use "
            "precision fp32, in a new folder"
        )

    def _save(self, done: int) -> None:
        """Writes a checkpoint: first the adapter as a file, then the state, which makes the checkpoint count."""
        self._save_adapter(checkpoint.adapter_file(self.folder.folder, done), done)
        tensors = {key: tensor.detach() for key, tensor in self.tensors.items()}
        now = checkpoint.Checkpoint(done, tensors, self.scratch, self.average.tensors, self.optimizer.state_dict())
        checkpoint.write(self.folder.folder, now)

    def _save_adapter(self, file: Path, done: int) -> None:
        from studio.files import save

        metadata = {**self.lesson.metadata(), "steps": str(done)}
        with self.average.shown():
            save(self.lesson.model, file, name=self.lesson.name, metadata=metadata)

    def _preview(self, done: int) -> None:
        with self.average.shown():
            save_previews(self.folder.folder, done, self.lesson)

    def _finish(self, losses: list[float], settings: Mapping[str, Any]) -> Run:
        self._save_adapter(self.folder.adapter, self.steps)
        self._preview(self.steps)
        moved = {}
        for part in self.lesson.rates:
            keys = [key for key in self.trained if not part or key.startswith(f"{part}.")]
            squares = sum(float((self.trained[key].detach() - self.start[key]).double().square().sum()) for key in keys)
            moved[part or "model"] = report.Moved(
                sites=len({key.rpartition(".")[0] for key in keys}), numbers=sum(self.trained[k].numel() for k in keys),
                norm=math.sqrt(squares), rate=self.lesson.rates[part],
            )  # fmt: skip
        report.write(self.folder, self.lesson, settings, losses, moved)
        self.folder.finish({"steps": self.steps, "loss": losses[-1]})
        return self.folder.result(already=False)
