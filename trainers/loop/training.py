"""The training loop. There is one."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from studio.adapters import adapters, attach, detach, state
from studio.adapters.targets.silent import silent_layers
from studio.adapters.training import on_step, penalty
from studio.errors import BadFile, DoesNotFit
from studio.families import components
from studio.trainers.loop import checkpoint, report
from studio.trainers.loop.claim import held
from studio.trainers.loop.draws import micro_batches
from studio.trainers.loop.group import Group, joined
from studio.trainers.loop.guard import (
    Interruption,
    NotFinite,
    check_moved,
    check_trainable,
    find_not_finite,
    interruptible,
)  # fmt: skip
from studio.trainers.loop.log import Log, console
from studio.trainers.loop.machine import machine, versions
from studio.trainers.loop.mode import accelerator_for, chance, kept_activations, training_mode
from studio.trainers.loop.optimizer import set_rates
from studio.trainers.loop.peak import Meter, taken
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.preview import save_previews
from studio.trainers.loop.run import Run, RunFolder
from studio.trainers.loop.sharding import DIVIDES_BASE, check_shards, check_started, shard
from studio.trainers.loop.steps import check_divisible, steps_of
from studio.trainers.loop.task import AdapterLike, Lesson, Loss, Say, Task
from studio.trainers.loop.weights import Weights, rehearsed_growth

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
    adapter: AdapterLike = None,
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
    optimizer: Literal["adamw", "lora-plus", "lora-fa", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"] = "adamw",
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
    offload_activations: bool = False,
    blocks_to_swap: int = 0,
    fused_backward_pass: bool = False,
    sharding: Literal["none", "full", "zero2", "zero3"] = "none",
    offload: Literal["none", "optimizer", "all"] = "none",
    cache: str | None = None,
    fit: str | None = None,
    further: bool = False,
    quiet: bool = False,
) -> Run:
    """Trains an adapter.

    The same call again goes on where an interrupted run stopped, bit for bit; for a finished run it returns the run.

    Args:
        task: what is learned: :class:`~studio.trainers.DreamBooth`, :class:`~studio.trainers.Style`, ...
        output: the run's folder, new, empty, or with this very run.
        adapter: the adapter's config, or the file of an adapter to train on from, with its config; None takes the
            recipe's.
        steps, seed, learning_rate, batch_size, accumulation, warmup, schedule, clip, weight_decay, beta2, optimizer,
            rate_ratio, embedding_rate, grow, precision, ema, gradient_checkpointing, checkpoint_every, preview_every,
            tensorboard, device, offload_activations, blocks_to_swap, fused_backward_pass, sharding, offload, cache,
            fit: see :class:`~studio.trainers.Plan`; None takes the recipe's value.
        further: the run in ``output`` had fewer steps and trains on to these, its learning rate as it stands at that
            place of the longer schedule; if it was finished, the optimizer's moments start anew.
        quiet: print nothing.

    Returns:
        The run: the adapter's file, the report, the losses.

    Raises:
        UsageError: whatever is wrong about the request, before anything is trained.
        NothingTrained: the adapter, or a part of it, would not be trained.
        NotFinite: the loss or a gradient became NaN or infinite.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the step was finished and a checkpoint written.
    """
    plan = Plan(
        steps=steps, seed=seed, learning_rate=learning_rate, batch_size=batch_size, accumulation=accumulation,
        warmup=warmup, schedule=schedule, clip=clip, weight_decay=weight_decay, beta2=beta2, optimizer=optimizer,
        rate_ratio=rate_ratio, embedding_rate=embedding_rate, grow={str(at): rank for at, rank in (grow or {}).items()},
        precision=precision, ema=ema, gradient_checkpointing=gradient_checkpointing,
        checkpoint_every=checkpoint_every, preview_every=preview_every, tensorboard=tensorboard, device=device,
        offload_activations=offload_activations, blocks_to_swap=blocks_to_swap, fused_backward_pass=fused_backward_pass,
        sharding=sharding, offload=offload, cache=cache, fit=fit,
    )  # fmt: skip
    group = joined()
    check_started(plan.sharding, group)
    with held(output, group) as folder:
        out = console(quiet or not group.main)
        lesson = task.open(adapter, plan, partial(out.print, markup=False))
        try:
            settings = folder.settings(lesson)
            group.check_same({**settings, "versions": versions(), "output": str(folder.folder)})
            if group.handed(lambda: folder.check(settings, further=further)):
                out.print(f"the run in {folder.folder} is finished: {folder.adapter}", markup=False)
                return folder.result(lesson.plan.steps or 0, partial(out.print, markup=False), already=True)
            return Training(lesson, folder, out, group).run(settings)
        finally:
            if lesson.name in adapters(lesson.model) and sharding not in DIVIDES_BASE:  # it does not come back
                detach(lesson.model, lesson.name)
            lesson.close()


class Training:
    """One run from its first, or next, step to the report.

    Args:
        lesson: the opened task.
        folder: the run's folder, held by this process.
        out: where lines for the user go.
        group: the processes of the run, of which the main one alone writes.
    """

    def __init__(self, lesson: Lesson, folder: RunFolder, out: Console, group: Group) -> None:
        self.lesson, self.folder, self.out, self.plan, self.group = lesson, folder, out, lesson.plan, group
        self.say = partial(out.print, markup=False)
        self.remarks: list[str] = []
        self.running: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        assert self.plan.steps is not None and self.plan.batch_size is not None, "the plan has been filled"
        self.steps, self.batch_size = self.plan.steps, self.plan.batch_size
        self.meter = Meter(components(lesson.model).values())

    def run(self, settings: Mapping[str, Any]) -> Run:
        """Trains to the end.

        Args:
            settings: what ``run.toml`` shall say.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the step was finished and a checkpoint written.
        """
        samples = self.batch_size * self.plan.accumulation
        self.group.check_room(samples)
        check_shards(self.plan.sharding, self.group, samples)
        self._prepare()
        self.identity = self.folder.identity(settings)
        first = self._begin_at()
        self.running = shard(self.modules, list(self.weights.tensors.values()), self.group, self.plan)
        self.ways = steps_of(self.weights, self.group, self.accelerator)
        losses = self.group.handed(lambda: self._begin(first, settings))
        if first:
            self.say(f"going on after step {first} of {self.steps}")
        if self._shows(first):  # a run that goes on may have been ended after its checkpoint and before its previews
            self._preview(first, self.say)
        curves = self.folder.folder / "tensorboard" if self.plan.tensorboard else None
        log = Log(
            self.folder.log if self.group.main else None, total=self.steps, before=losses, out=self.out,
            device=self.device, tensorboard=curves if self.group.main else None,
        )  # fmt: skip
        with training_mode(self.modules), interruptible() as request, log:
            for done in range(first + 1, self.steps + 1):
                figures = self._step(done)
                if done in self.plan.stages:
                    rank = self.plan.stages[done]
                    log.say(f"the adapter has grown to rank {rank}: {self.weights.grow(rank):,} numbers are trained")
                losses.append(figures["loss"])
                log.step(done, figures)
                self._keep(done, request, log)
        return self._finish(losses, settings)

    def _begin_at(self) -> int:
        """Brings all processes to where the run stands; returns the steps that it has done."""

        def found() -> checkpoint.Checkpoint:
            first = self._train_on() if self.folder.ended else self._resume()
            return self.weights.checkpoint(first)

        if self.group.alone:
            return found().step
        state = checkpoint.unpacked(self.group.handed(lambda: checkpoint.packed(found())))[-1]
        if not self.group.main:
            self.weights.restore(state)
        return state.step

    def _begin(self, first: int, settings: Mapping[str, Any]) -> list[float]:
        """Writes what the run is; returns the losses of the steps before."""
        self._remark(self.folder.begin(settings, machine(self.device, self.group.size)))
        return self.folder.rewind(first, self._remark)

    def _remark(self, line: str | None) -> None:
        """Says something about the run's own files, now and in the report."""
        if line is not None:
            self.remarks.append(line)
            self.say(line)

    def _prepare(self) -> None:
        lesson, plan = self.lesson, self.plan
        with self.group.in_order():  # caches and class pictures are made once
            lesson.prepare(self.say)
        parts = components(lesson.model)
        self.modules = [parts[name] for name in lesson.rates]
        self.device = lesson.swap.device if lesson.swap is not None else next(self.modules[0].parameters()).device
        self.accelerator = accelerator_for(plan.precision, self.device)
        found = attach(
            lesson.model, lesson.attached, name=lesson.name, seed=plan.seed,
            components=[name for name in lesson.rates if name] or None,
            calibrate=self._calibrate if lesson.attached.data_driven else None,
        )  # fmt: skip
        if lesson.swap is not None:
            lesson.swap.settle()
        check_trainable(state(lesson.model, lesson.name), list(lesson.rates))
        check_divisible(lesson.model, lesson.name, plan.sharding)
        on_step(lesson.model, lesson.name, step=0, steps=self.steps)
        most = rehearsed_growth(lesson)
        self.weights = Weights(lesson)
        if lesson.start is not None:
            self.weights.take(lesson.start)
        if self.group.main:
            self.folder.probe(math.ceil(self.weights.size * most) * (1 + checkpoint.KEPT * STATE_SIZE) + SPARE)
        self.say(f"training {self.weights.numbers:,} numbers in {len(found.sites)} layers")

    def _calibrate(self, model: Any) -> None:
        """Runs the task's own loss over its first samples, for a start that is made from data."""
        for step in range(math.ceil(CALIBRATION_SAMPLES / self.batch_size)):
            for numbers in micro_batches(step, self.batch_size, 1, Group()):  # every process sees the same ones
                self._loss(numbers)

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the steps that it has done."""
        found = checkpoint.newest(self.folder.folder, self.identity, self._remark)
        if found is None:
            return 0
        self.weights.restore(found)
        return found.step

    def _train_on(self) -> int:
        """Makes a finished run one that stopped after its last step; returns the steps that it has done.

        Raises:
            DoesNotFit: the file holds the adapter in another form than it was trained in.
        """
        done, file = int((self.folder.ended or {})["steps"]), self.folder.adapter
        try:
            self.weights.take(file, done)
        except BadFile as problem:
            raise DoesNotFit(
                f"the finished file holds the adapter in another form than it was trained in ({problem}); train on "
                "from it in a new folder, with --from"
            ) from None
        checkpoint.write(self.folder.folder, self.weights.checkpoint(done), self.identity)
        self.folder.extend()
        self._remark(f"training on after {done} steps, from {self.folder.adapter.name} and without moments")
        return done

    def _loss(self, numbers: range) -> Loss:
        """Computes the loss of samples, with a stream of chance of their own."""
        with self.running(), chance(self.plan.seed, numbers[0], self.device), self.accelerator.autocast():
            return self.lesson.loss(numbers)

    def _step(self, done: int) -> dict[str, float]:
        """Does the step after which ``done`` steps are done; returns the figures for the log."""
        lesson, weights = self.lesson, self.weights
        rate = set_rates(weights.optimizer, self.plan.rate_factor(done - 1))
        totals = self.group.totals(self._differentiate(done))
        if not math.isfinite(totals["loss"]):
            raise self._not_finite(done, f"the loss is {totals['loss']}", self._numbers(done))
        norm = self.ways.step()
        if not math.isfinite(norm):
            raise self._not_finite(done, f"the gradient's norm is {norm}", self._numbers(done)[-self.batch_size :])
        if done == CHECKED_STEP or done == self.steps < CHECKED_STEP:
            silent = silent_layers(components(lesson.model))
            unheard = {f"{name}.{path}".strip(".") for name, paths in silent.items() for path in paths}
            check_moved(weights.start, weights.tensors, done, unheard, self.ways.reached)
        on_step(lesson.model, lesson.name, step=done, steps=self.steps)
        weights.step(done)
        lesson.after_step(done)
        return {**totals, "learning_rate": rate, "gradient_norm": norm}

    def _differentiate(self, done: int) -> dict[str, float]:
        """Accumulates the gradients of this process's samples; returns its share of the loss and its parts."""
        totals, count = {"loss": 0.0}, self.batch_size * self.plan.accumulation
        passes = micro_batches(done - 1, self.batch_size, self.plan.accumulation, self.group)
        for numbers in passes:
            of_step = len(numbers) / count
            with kept_activations(self.plan.offload_activations, self.device, self.lesson.swap):
                loss = self._loss(numbers)
            value = float(loss.total.detach())
            if not math.isfinite(value) and self.group.alone:
                raise self._not_finite(done, f"the loss is {value}", numbers)
            extra = penalty(self.lesson.model, self.lesson.name)
            total = loss.total if extra is None else loss.total + extra
            self.ways.backward(total * of_step, last=numbers == passes[-1])
            totals["loss"] += value * of_step
            for name, part in loss.parts.items():
                totals[name] = totals.get(name, 0.0) + float(part) * of_step
        return totals

    def _numbers(self, done: int) -> range:
        """The samples of a step, of all processes."""
        count = self.batch_size * self.plan.accumulation
        return range((done - 1) * count, done * count)

    def _not_finite(self, done: int, what: str, numbers: range) -> NotFinite:
        where = find_not_finite(self.lesson.model, self.weights.tensors, lambda: self._loss(numbers).total)
        found = checkpoint.newest(self.folder.folder, self.identity)
        last = f"the last good checkpoint is that of step {found.step}" if found else "there is no checkpoint yet"
        return NotFinite(
            f"step {done}: {what}; the first that is not finite is {where}; {last}: lower the learning rate, or use "
            "precision fp32, in a new folder"
        )

    def _keep(self, done: int, request: Interruption, log: Log) -> None:
        """Writes what is due after a step; stops here where someone asked for it."""
        stops = self.group.any(request.name is not None)
        if done == self.steps:  # what is shown and measured at the end may be interrupted, too
            self._save_state(done)
            return
        if stops or (self.plan.checkpoint_every and done % self.plan.checkpoint_every == 0):
            self._save(done)
        if stops:
            log.say(f"stopped by {request.name or 'a signal'} after step {done}; the same command goes on from there")
            raise KeyboardInterrupt
        if self._shows(done):
            self._preview(done, log.say)

    def _shows(self, done: int) -> bool:
        """Whether previews are due after a step; the last one's are made with the report."""
        return not done or bool(self.plan.preview_every and done % self.plan.preview_every == 0 and done < self.steps)

    def _save(self, done: int) -> None:
        """Writes a checkpoint: first the adapter as a file, then the state, which makes the checkpoint count."""
        if self.group.main:
            self._save_adapter(checkpoint.adapter_file(self.folder.folder, done), done)
        self._save_state(done)

    def _save_state(self, done: int) -> None:
        state = self.weights.checkpoint(done)  # of all processes
        if self.group.main:
            self.folder.check_there()
            checkpoint.write(self.folder.folder, state, self.identity)

    def _save_adapter(self, file: Path, done: int) -> None:
        from studio.files import save

        self.folder.check_there()
        with self.weights.averaged():
            save(
                self.lesson.model, file, name=self.lesson.name, metadata={**self.lesson.origin, "steps": str(done)}
            )  # fmt: skip

    def _preview(self, done: int, say: Say) -> None:
        if not self.group.main and self.plan.sharding not in DIVIDES_BASE:
            return
        if self.group.main:
            self.folder.check_there()
        with self.running(), self.weights.averaged():  # of a divided base, all processes have to run it
            files = save_previews(self.folder.folder, done, self.lesson, writes=self.group.main)
        if files:
            say(f"previews of step {done}: {files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}")

    def _finish(self, losses: list[float], settings: Mapping[str, Any]) -> Run:
        if self.group.main:
            self._save_adapter(self.folder.adapter, self.steps)
        self._preview(self.steps, self.say)
        if self.group.main:
            self.folder.check_there()
            held = taken(self.meter, self.lesson, self._remark)
            report.write(self.folder, self.lesson, settings, losses, self.weights.movements(), held, self.remarks)
            self.folder.finish(losses, held.facts())
        self.group.wait()
        return self.folder.result(self.steps, self.say, already=False)
