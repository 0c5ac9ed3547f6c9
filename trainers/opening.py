"""What every task does first: it opens its base, and takes from the recipe what nobody has said."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from studio.adapters import AdapterConfig, adapters, detach
from studio.adapters.contract.mixed import Mixed
from studio.device import choose_device, choose_dtype
from studio.errors import BadFile
from studio.families import Base
from studio.families.base import move
from studio.families.language import LanguageBase
from studio.families.language.heads import head_layers
from studio.pipelines.kinds import check_kind
from studio.pipelines.naming import adapter_file as named_file
from studio.planning.forecast import Forecast
from studio.trainers.loop.mode import precise
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.run import sha256
from studio.trainers.loop.task import AdapterLike, Say
from studio.trainers.recipes import Recipe, recipe_for, usual_adapter

__all__ = ["Opening", "adapter_file", "open_with_recipe"]

AnyBase = TypeVar("AnyBase", Base, LanguageBase)


@dataclass(frozen=True)
class Opening(Generic[AnyBase]):
    """A base in memory, and what was decided about its training.

    Args:
        base: the base.
        base_name: what was named: the embedded base, the folder, or the class of an object.
        device: where it computes.
        recipe: the defaults of the task on a base of this size.
        adapter: the adapter's config.
        factor: what the recipe's rates, which are LoRA's, are multiplied by for its method.
        plan: the loop's settings, without open fields.
        say: takes lines for the user.
        notes: lines for the report.
        start: the adapter file that is trained on from, or None.
    """

    base: AnyBase
    base_name: str
    device: torch.device
    recipe: Recipe
    adapter: AdapterConfig
    factor: float
    plan: Plan
    say: Say
    notes: list[str] = field(default_factory=list)
    start: Path | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """What it starts from besides base and data, as name -> hash."""
        return {} if self.start is None else {"start": _digest(self.start)}

    @property
    def rate(self) -> float:
        """The learning rate."""
        assert self.plan.learning_rate is not None, "the plan has been filled"
        return self.plan.learning_rate

    def foreseen(self, task: Any, sizes: Mapping[str, int] | None = None) -> Callable[[], Forecast] | None:
        """Returns what makes the forecast of a task on this base, later; None where its base is an object.

        Args:
            task: its description. sizes: of the samples, where they are known.
        """
        if not isinstance(task.base, (str, Path)):
            return None

        def foresee() -> Forecast:
            from studio.trainers.forecast.before import forecast_of

            return forecast_of(task, self.adapter, self.plan, sizes)

        return foresee

    def tell(self, line: str) -> None:
        """Says something now and in the report."""
        self.notes.append(line)
        self.say(line)

    def origin(self, task_name: str, dataset: str, licence: str | None) -> dict[str, str]:
        """Returns what the files of every task's adapters say about their origin.

        Args:
            task_name: the task.
            dataset: hash of what is trained on.
            licence: the adapter's; None says nothing.
        """
        origin = {
            "task": task_name, "base": self.base.id, "base_hash": self.base.hash, "dataset": dataset,
            "seed": str(self.plan.seed), "steps": str(self.plan.steps), "learning_rate": repr(self.plan.learning_rate),
            "batch_size": str(self.plan.batch_size),
        }  # fmt: skip
        parents = {} if self.start is None else {"parents": self.inputs["start"]}
        return origin | ({"licence": licence} if licence else {}) | parents


def open_with_recipe(
    task_name: str,
    base: Any,
    open_base: Callable[..., AnyBase],
    embedded: Mapping[str, Path],
    *,
    adapter: AdapterLike,
    plan: Plan,
    say: Say,
    quantize: str | None = None,
) -> Opening[AnyBase]:
    """Opens a base and fills what is open of the plan and the adapter from the recipe.

    Args:
        task_name: whose recipe it is.
        base: what ``open_base`` takes.
        open_base: :func:`~studio.families.open_base` or :func:`~studio.families.language.open_language_base`.
        embedded: the embedded bases, by name.
        adapter: the adapter's config, or a file with one to train on from; None takes the recipe's.
        plan: the loop's settings.
        say: takes lines for the user.
        quantize: what of the base is kept in fewer bits, and how; None: nothing.

    Raises:
        UsageError: the device or the base is not there, or cannot do this.
    """
    start = adapter_file(adapter) if isinstance(adapter, (str, Path)) else None
    device = choose_device(plan.device)
    plan = precise(plan, device, say)
    name = _name(base, embedded)
    say(f"opening the base {name}")
    away = {"blocks_to_swap": plan.blocks_to_swap} if plan.blocks_to_swap else {}
    opened = open_base(base, device=device, quantize=quantize, **away)
    _widen(opened, device, say)
    for part, done in opened.quantized.items():
        say(f"{part or 'the model'}: {done}")
    recipe = recipe_for(task_name, opened)
    config = adapter(recipe) if callable(adapter) else adapter
    if start is not None:
        config = _config_of(opened, start)
        say(f"training on from {start}")
    adapter = config if isinstance(config, AdapterConfig) else usual_adapter(recipe)
    steps = recipe.steps if plan.steps is None else plan.steps
    factor = adapter.rate
    plan = plan.filled(
        steps=steps, learning_rate=recipe.learning_rate * factor, batch_size=recipe.batch_size,
        warmup=round(recipe.warmup * steps), schedule=recipe.schedule, beta2=recipe.beta2,
        preview_every=recipe.preview_every(steps),
    )  # fmt: skip
    return Opening(opened, name, device, recipe, adapter, factor, plan, say, start=start)


def _widen(base: Base | LanguageBase, device: torch.device, say: Say) -> None:
    """Gives what was read from fp16 files a type in which gradients do not underflow; objects stay as they are."""
    parts = base.pipe.components.values() if isinstance(base, Base) else (base.model,)
    halves = [part for part in parts if isinstance(part, torch.nn.Module) and _is_half(part)]
    if base.folder is None or not halves:
        return
    _ = base.hash  # of what was read
    choice = choose_dtype(torch.bfloat16, device, training=True)
    for part in halves:
        move(part, choice.dtype, None)
    say(f"its files are fp16, whose gradients underflow: training in {choice.name} instead")
    if choice.note:
        say(choice.note)


def _is_half(module: torch.nn.Module) -> bool:
    return any(parameter.dtype == torch.float16 for parameter in module.parameters())


def adapter_file(given: str | Path) -> Path:
    """Returns the file of an adapter that is named by itself, by the folder of its run or by a hub id, after a look.

    Raises:
        BadFile: it is not there, or no adapter.
        UnknownName: the hub has no such repository, or its cache has none and it is not to be asked.
    """
    from studio.files import inspect

    file = named_file(given)
    if not inspect(file).method:
        raise BadFile(f"{file} holds no adapter that can be trained on from")
    return file


def _digest(adapter: Path) -> str:
    """Returns the SHA-256 of an adapter's file, or of the files of PEFT's folder in order."""
    if not adapter.is_dir():
        return sha256(adapter)
    parts = sorted(file for file in adapter.glob("adapter_*") if file.is_file())
    return hashlib.sha256("".join(map(sha256, parts)).encode()).hexdigest()


def _config_of(base: Base | LanguageBase, file: Path) -> AdapterConfig:
    """Returns the config of the adapter in a file, as it is read for this base, without the head beside it."""
    from studio.files import inspect, load

    model = base.pipe if isinstance(base, Base) else base.model
    if isinstance(base, LanguageBase):
        check_kind(base, file, inspect(file).facts)
    name = load(model, file, name="trained-on-from").name
    try:
        config = adapters(model)[name].config
    finally:
        detach(model, name)
    head = set(head_layers(model)) if isinstance(base, LanguageBase) and base.kind.head else set()
    if not head.intersection(config.targets):
        return config
    own = [(part, tuple(path for path in part.targets if path not in head)) for part in config.members]
    parts = tuple(dataclasses.replace(part, targets=paths) for part, paths in own if paths)
    return Mixed(parts=parts) if len(parts) > 1 else (*parts, config)[0]


def _name(base: Any, embedded: Mapping[str, Path]) -> str:
    """Returns what a base is called in ``run.toml``, whether it is open already or not."""
    if isinstance(base, (Base, LanguageBase)):
        known = base.folder is None or base.id in embedded or "/" in base.id  # of the hub
        return base.id if known else str(base.folder)
    if isinstance(base, (str, Path)):
        return str(base)
    return type(base[0] if isinstance(base, Sequence) else base).__name__
