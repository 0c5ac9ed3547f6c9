"""A training that would not fit is refused before its base is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from studio.device import choose_device
from studio.errors import BadConfig, DoesNotFit
from studio.families.opening.dtype import usual_dtype
from studio.launched import started_processes
from studio.planning.blueprint import blueprint
from studio.planning.forecast import Forecast
from studio.trainers.forecast.asked import OF_THE_LOOP, Asked
from studio.trainers.forecast.fit import check_fits
from studio.trainers.forecast.plan import IMAGE_TASKS, forecast
from studio.trainers.language.rehearsals import REHEARSALS
from studio.trainers.loop.mode import precise
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import AdapterLike, Say

__all__ = ["asked_of", "check_before", "forecast_of"]

_TASK = ("resolution", "text_encoder", "quantize", "prior", "crop")


def asked_of(
    task: Any, adapter: AdapterLike, plan: Plan, processes: int = 1, sizes: Mapping[str, int] | None = None
) -> Asked:  # fmt: skip
    """Returns what a forecast is asked of a task.

    Args:
        task: its description. adapter: as a training takes it; of a file, the recipe's own is taken. plan: the loop's
            settings. processes: how many there are. sizes: of the samples, by fields of what is asked, where they are
            known; None: what the task says.

    Raises:
        DoesNotFit: no forecast is made of the task.
        BadConfig: its base is an object, of which no forecast is made.
    """
    if not isinstance(task.base, (str, Path)):
        raise BadConfig("fit= asks for a forecast, which is made of a base by name or file; this one is open already")
    if task.task_name not in (*REHEARSALS, *IMAGE_TASKS):
        raise DoesNotFit(
            f"no forecast is made of the task {task.task_name}, so fit={plan.fit!r} cannot be kept: leave it out"
        )
    mine = {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name in _TASK}
    if "prior" in mine and mine["prior"] is None:
        mine["prior"] = "images" if task.class_images else "self" if task.class_prompts else None
    sized: dict[str, Any] = {"length": getattr(task, "max_length", None), **(sizes or {})}
    options = REHEARSALS[task.task_name].options if task.task_name in REHEARSALS else ()
    own = {name: getattr(task, name) for name in options}
    config = None if isinstance(adapter, (str, Path)) else adapter
    possible = precise(plan, choose_device(plan.device), lambda line: None)
    loop = {name: getattr(possible, name) for name in OF_THE_LOOP}
    seen = getattr(task, "preview_prompts", None) != ()
    return Asked(
        task=task.task_name, own=own, adapter=config, processes=processes, previews=seen,
        dtype="fp32" if _on_cpu(task.base, plan) else None, **sized, **mine, **loop,
    )  # fmt: skip


def _on_cpu(base: str | Path, plan: Plan) -> bool:
    """Whether the base is a small one on a CPU, which is then read as fp32."""
    device = choose_device(plan.device)
    if device.type != "cpu":
        return False
    drawn = blueprint(base)
    numbers = sum(part.numel() for one in drawn.components.values() for part in one.parameters())
    return drawn.dtype is not None and usual_dtype({drawn.dtype: numbers}, device) is torch.float32


def forecast_of(task: Any, adapter: AdapterLike, plan: Plan, sizes: Mapping[str, int] | None = None) -> Forecast:
    """Returns the forecast of a task, as nothing has corrected it.

    Args:
        task: its description. adapter: as a training takes it. plan: the loop's settings. sizes: of the samples, as
            :func:`asked_of` takes them.

    Raises:
        UsageError: as :func:`studio.trainers.forecast.plan.plan`.
    """
    asked = asked_of(task, adapter, plan, started_processes()[1], sizes)
    return forecast(task.base, dataclasses.replace(asked, corrected=False))


def check_before(task: Any, adapter: AdapterLike, plan: Plan, say: Say) -> None:
    """Checks that a training fits into what the plan says there is; where it says nothing, nothing is looked at.

    Args:
        task: its description. adapter: as a training takes it. plan: the loop's settings. say: takes a line.

    Raises:
        DoesNotFit: it does not; two ways that do are named, or the least that is needed.
        UsageError: as :func:`studio.trainers.forecast.plan.plan`.
    """
    if plan.fit is not None:
        made = check_fits(task.base, asked_of(task, adapter, plan, started_processes()[1]), plan.fit)
        say(f"forecast: {made.peak / 1e9:.2f} GB at the peak, of {plan.fit}")
