"""The stages of a run, each played once with the run's own objects and counted: caching, the step, previews, saving."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from studio.adapters import AdapterConfig, attach, state
from studio.adapters.contract.mixed import Mixed
from studio.adapters.training import on_step, penalty
from studio.errors import DoesNotFit
from studio.families import components
from studio.planning.attending import attending_as
from studio.planning.tracker import Tracker
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.whole import Whole
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.loop.block_swap import BlockSwap
from studio.trainers.loop.fused import FusedBackward
from studio.trainers.loop.mode import training_mode
from studio.trainers.loop.task import Lesson
from studio.trainers.loop.weights import Weights

__all__ = ["Scene", "Stuff", "play", "reference_of"]


class Stuff(Protocol):
    """What tensors are made of: nothing (:class:`studio.planning.fakes.Fakes`), or memory, to compare with."""

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns a tensor."""

    def fill(self, module: nn.Module) -> None:
        """Gives a module on the meta device tensors."""

    def entered(self, tracker: Tracker | None = None) -> AbstractContextManager[None]:
        """While it lasts, what is computed is computed so, and counted."""


@dataclass
class Scene:
    """What is played.

    Args:
        lesson: what is trained. beside: the modules that are used around the steps: autoencoder, encoders.
        resident: those of them that stay on the device while it trains.
        cache: computes what is kept before the first step. draw: computes a preview.
        whole: every weight is trained itself, and no adapter is put on. sizes: of the samples.
        reference: asks the base without the adapter, before the first step too.
    """

    lesson: Lesson
    beside: dict[str, nn.Module] = field(default_factory=dict)
    resident: tuple[str, ...] = ()
    cache: Callable[[], Any] | None = None
    draw: Callable[[], Any] | None = None
    whole: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    reference: Callable[[], Any] | None = None


def reference_of(lesson: Lesson) -> Callable[[], None] | None:
    """Returns what asks a lesson's reference before the first step, as a run does; None where none is asked.

    Args:
        lesson: the lesson; the base's own dropout is switched off where it has a reference.
    """
    if not isinstance(lesson, ReferenceLesson):
        return None
    lesson.keep_still()

    def ask() -> None:
        with lesson.bare():
            lesson.remember(lambda line: None)

    if lesson.asks:
        return ask
    lesson.remember(lambda line: None)
    return None


def play(scene: Scene, asked: Asked, stuff: Stuff, tracker: Tracker) -> None:
    """Plays a run's stages and counts them.

    Args:
        scene: what is played. asked: the settings. stuff: what tensors are made of. tracker: counts.
    """
    lesson, parts = scene.lesson, components(scene.lesson.model)
    trained = [parts[name] for name in lesson.rates]
    lone = {name: module for name, module in scene.beside.items() if module not in trained}
    _set(scene, stuff, trained, list(lone.values()))
    swap = _swapped(trained[0], next(iter(lesson.rates)), asked, tracker)
    apart = {id(tensor) for tensor in swap.held} if swap is not None else set[int]()
    with tracker.phase("load", "weights"):
        for module in [*trained, *lone.values()]:
            own = [tensor for name, tensor in _tensors(module) if ".adapters." not in f".{name}"]
            tracker.own([tensor for tensor in own if id(tensor) not in apart], "weights")
    with stuff.entered(tracker), attending_as(asked.attention, [*trained, *lone.values()]):
        if scene.cache is not None:
            with torch.no_grad(), tracker.phase("caching", "temporaries"):
                scene.cache()
        if scene.reference is not None:
            with tracker.phase("reference", "temporaries"):
                scene.reference()
        _away(tracker, [lone[name] for name in lone if name not in scene.resident])
        with tracker.phase("optimizer", "adapter"):
            tracker.own({} if scene.whole else state(lesson.model, lesson.name).values(), "adapter")
        with training_mode(trained):
            weights = _prepared(scene, asked, tracker)
            _step(lesson, weights, asked, stuff, tracker, swap)
        with tracker.phase("save", "save"), weights.averaged():
            kept = [tensor.detach().clone() for tensor in weights.tensors.values()]
        del kept
        if scene.draw is not None:
            tracker.own([t for m in lone.values() for _, t in _tensors(m)], "weights")
            with torch.no_grad(), tracker.phase("preview", "preview"), weights.averaged():
                scene.draw()


def _swapped(root: nn.Module, name: str, asked: Asked, tracker: Tracker) -> BlockSwap | None:
    """Lets blocks wait where they are not counted; what is fetched of them is."""
    if not asked.blocks_to_swap:
        return None
    return BlockSwap(
        root, asked.blocks_to_swap, name=name or "the model", checkpointed=asked.gradient_checkpointing,
        fetched=lambda copies: tracker.own(copies, "weights"),
    )  # fmt: skip


def _set(scene: Scene, stuff: Stuff, trained: Sequence[nn.Module], lone: Sequence[nn.Module]) -> None:
    """Makes everything ready: checkpointing, the adapter, tensors."""
    lesson = scene.lesson
    Lesson.prepare(lesson, lambda line: None)
    attached = scene.whole or _attached(lesson)
    for module in (*trained, *lone):
        stuff.fill(module)
    for module in trained if scene.whole else ():
        module.requires_grad_(True)
    if not attached:
        with stuff.entered():
            _attach(lesson)


def _attached(lesson: Lesson) -> bool:
    """Attaches the adapter where its start asks nothing of the weights; says whether it did."""
    try:
        _attach(lesson)
    except DoesNotFit:  # it does: it is attached when there are some
        return False
    return True


def _attach(lesson: Lesson) -> None:
    """Attaches the adapter as a run does.

    Raises:
        DoesNotFit: its start asks for more than shapes.
    """
    if lesson.adapter.data_driven:
        parts = [_undriven(part) for part in lesson.adapter.members]
        lesson.adapter = parts[0] if len(parts) == 1 else Mixed(parts=tuple(parts))
    try:
        _attach_as(lesson, lesson.attached)
    except DataDependentOutputException:
        raise DoesNotFit(
            f"no forecast is made of {type(lesson.adapter).__name__}: it starts by choosing weights by their numbers, "
            "which a plan does not read; that of LoRA(rank=...) with as many trained numbers is about the same"
        ) from None


def _undriven(config: AdapterConfig) -> AdapterConfig:
    """The config with a start that asks for no data: its tensors are as large as any start's."""
    if not config.data_driven:
        return config
    usual: dict[str, Any] = {"init": type(config).__dataclass_fields__["init"].default}
    return replace(config, **usual)


def _attach_as(lesson: Lesson, config: AdapterConfig) -> None:
    attach(
        lesson.model, config, name=lesson.name, seed=lesson.plan.seed,
        components=[name for name in lesson.rates if name] or None,
    )  # fmt: skip


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _away(tracker: Tracker, modules: Sequence[nn.Module]) -> None:
    """Modules that leave the device count there no more; they come back with the previews."""
    tracker.leave(tensor for module in modules for _, tensor in _tensors(module))


def _prepared(scene: Scene, asked: Asked, tracker: Tracker) -> Weights | Whole:
    """Makes the loop's own objects, and lets the optimizer make its states with gradients of nothing."""
    with tracker.phase("optimizer", "adapter"):
        weights = Whole(scene.lesson) if scene.whole else Weights(scene.lesson)
    for tensor in weights.trained.values():
        tensor.register_post_accumulate_grad_hook(lambda one: tracker.own([one.grad], "gradients"))
        tensor.grad = torch.zeros_like(tensor)
        tracker.own([tensor.grad], "gradients")
    with tracker.phase("warming", "temporaries"):
        weights.optimizer.step()
    tracker.peaks.pop("warming")
    states = [value for kept in weights.optimizer.state.values() for value in kept.values()]
    tracker.own([one for one in states if isinstance(one, Tensor)], "optimizer")
    weights.optimizer.zero_grad(set_to_none=not asked.keep_gradients)
    if asked.fused_backward_pass:
        assert isinstance(weights.optimizer, torch.optim.Optimizer), "it is not divided"
        FusedBackward(weights.trained, weights.optimizer)
    return weights


def _step(
    lesson: Lesson, weights: Weights | Whole, asked: Asked, stuff: Stuff, tracker: Tracker, swap: BlockSwap | None
) -> None:  # fmt: skip
    """A step as the loop does it, with two of its micro-batches: gradients stand beside the second's activations."""
    micro = min(asked.accumulation, 2)
    for number in range(micro):
        rows = range(number * asked.rows, (number + 1) * asked.rows)
        away = _put_by(stuff, tracker) if asked.offload_activations else contextlib.nullcontext()
        away = away if swap is None else swap.keeping(away)
        with tracker.phase("forward", "activations"), _products(asked), away:
            total = lesson.loss(rows).total
            extra = None if isinstance(weights, Whole) else penalty(lesson.model, lesson.name)
            total = (total if extra is None else total + extra) / asked.accumulation
        with tracker.phase("backward", "temporaries"):
            total.backward()
        del total, extra
    with tracker.phase("optimizer", "temporaries"):
        if lesson.plan.clip:
            torch.nn.utils.clip_grad_norm_(weights.trained.values(), lesson.plan.clip)
        weights.optimizer.step()
        if isinstance(weights, Weights):
            on_step(lesson.model, lesson.name, step=1, steps=lesson.plan.steps or 1)
        if asked.keep_gradients:
            weights.optimizer.zero_grad(set_to_none=False)
        else:
            weights.step(1)


def _products(asked: Asked) -> AbstractContextManager[Any]:
    """What products are computed in, as the accelerator of a run sees to."""
    if asked.precision == "bf16":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def _put_by(stuff: Stuff, tracker: Tracker) -> AbstractContextManager[Any]:
    """Keeps what the backward pass needs where it is not counted, as a run does in the machine's memory."""

    def pack(tensor: Tensor) -> Tensor:
        with stuff.entered():
            return tensor.detach().clone()

    def unpack(kept: Tensor) -> Tensor:
        with stuff.entered(tracker):
            return kept.clone()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
