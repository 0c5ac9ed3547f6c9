"""Tasks of which no forecast is made: their steps do more than the one pass over a batch that a forecast plays."""

from __future__ import annotations

from collections.abc import Callable

from studio.errors import DoesNotFit
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import AdapterLike, Lesson, Say

__all__ = ["without_forecast"]


def without_forecast(
    open_task: Callable[[AdapterLike, Plan, Say], Lesson], task: str, adapter: AdapterLike, plan: Plan, say: Say
) -> Lesson:
    """Opens a task so that no forecast is held against what it takes.

    Args:
        open_task: opens it. task: its name. adapter, plan, say: as it takes them.

    Raises:
        DoesNotFit: a forecast is asked for.
        UsageError: as the task.
    """
    if plan.fit is not None:
        raise DoesNotFit(f"no forecast is made of the task {task}, so fit={plan.fit!r} cannot be kept: leave it out")
    lesson = open_task(adapter, plan, say)
    lesson.foresee = None
    return lesson
