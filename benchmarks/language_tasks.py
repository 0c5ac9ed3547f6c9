"""Every task on language bases, on a base that comes with the studio: ``python -m benchmarks.language``.

Each row trains an adapter with the recipe's settings, and beside it all weights of the same model on the same draws, at
the best of a few rates, and shows the task's metric on held-out data: of the base as it is, of the adapter, and of full
fine-tuning. Where a reference model is the adapter switched off (preferences), there is no full fine-tuning of it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from studio.families.language import sample_file
from studio.files import inspect
from studio.trainers import TEXT_TASKS, train
from studio.trainers.loop.mode import training_mode
from studio.trainers.loop.optimizer import adamw, set_rates
from studio.trainers.loop.plan import Plan

__all__ = ["ROWS", "Row", "main", "measured"]

FULL_RATES: Final = (1e-4, 3e-4, 1e-3)
HERE: Final = Path(__file__).parents[1] / "studio" / "families"


@dataclass(frozen=True)
class Row:
    """A task as it is measured.

    Args:
        task: its name. base: the base. data, held_out: what it is trained and measured on.
        metric: what is shown. settings: those that are not the recipe's. full: whether all weights can be trained.
        steps: None: the recipe's.
    """

    task: str
    base: str
    data: Path
    held_out: Any
    metric: str
    settings: dict[str, Any]
    full: bool = True
    steps: int | None = None

    def make(self) -> Any:
        """The task."""
        return TEXT_TASKS[self.task](base=self.base, data=self.data, held_out=self.held_out, **self.settings)


def _row(task: str, base: str, of: str, metric: str, stem: str = "", **more: Any) -> Row:
    settings = more.pop("settings", {})
    names = (f"{stem}.jsonl", f"{stem}-held-out.jsonl") if stem else ("train.jsonl", "held-out.jsonl")
    return Row(task, base, sample_file(of, names[0]), sample_file(of, names[1]), metric, settings, **more)


ROWS: Final = (
    _row("causal-lm", "facts", "facts", "exact_match"),
    _row("seq2seq", "words", "words", "exact_match"),
    _row("classify", "facts", "facts", "accuracy", "glosses"),
    _row("preference", "facts", "facts", "accuracy", "preferences", full=False),
    _row("reward", "facts", "facts", "accuracy", "preferences"),
    _row("embed", "facts", "words", "recall_at_1"),
    _row(
        "grpo", "facts", "facts", "reward", full=False, steps=40,
        settings={"answers": 60, "reward": "length:1", "max_new_tokens": 16},
    ),
    Row("caption", "figures", HERE / "figures" / "train", HERE / "figures" / "held-out", "exact_match", {}),
    Row("speech", "speech", HERE / "speech" / "train", HERE / "speech" / "held-out", "word_error_rate", {}),
    Row(
        "code", "facts", Path(__file__).parents[1] / "datasets", 0.15, "held_out_loss",
        {"marks": ("<PRE>", "<SUF>", "<MID>"), "max_length": 192}, steps=150,
    ),
)  # fmt: skip
"""The rows of the table."""


def of_encoder(folder: Path) -> Row:
    """The row of a real encoder, given as a folder: the sorts of nouns from their glosses, by a head."""
    return _row("classify", str(folder), "facts", "accuracy", "glosses", steps=150)


def tuned(row: Row, seed: int) -> dict[str, float]:
    """Trains an adapter; returns the metric before and after, the seconds, and how many numbers were trained."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(row.make(), output=Path(folder) / "run", seed=seed, steps=row.steps, quiet=True)
        seconds, numbers = time.perf_counter() - begin, inspect(run.adapter).parameters or 0
    first, last = run.measures[min(run.measures)], run.measures[max(run.measures)]
    return {"before": first[row.metric], "after": last[row.metric], "seconds": seconds, "numbers": float(numbers)}


def full(row: Row, seed: int, rate: float) -> dict[str, float]:
    """Fine-tunes all weights on the same task, draws and schedule."""
    lesson = row.make().open(None, Plan(steps=row.steps, seed=seed, learning_rate=rate), lambda line: None)
    model, plan = lesson.model, lesson.plan
    assert plan.steps is not None and plan.batch_size is not None, "the plan has been filled"
    weights = dict(model.named_parameters())
    for weight in weights.values():
        weight.requires_grad_(True)
    optimizer = adamw(weights, {"": rate}, plan.weight_decay, plan.beta2 or 0.999)
    with training_mode([model]):
        for step in range(plan.steps):
            set_rates(optimizer, plan.rate_factor(step))
            lesson.loss(range(step * plan.batch_size, (step + 1) * plan.batch_size)).total.backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    numbers = float(sum(weight.numel() for weight in weights.values()))
    return {"after": dict(lesson.measure())[row.metric], "numbers": numbers}


def measured(row: Row, seeds: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the medians over the seeds of a row."""
    runs = [tuned(row, seed) for seed in seeds]
    found: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    say(f"{row.task}: {row.metric} {found['before']:.3f} -> {found['after']:.3f} in {found['seconds']:.0f} s")
    if row.full:
        falls = row.metric in ("held_out_loss", "word_error_rate")
        tried = {
            rate: statistics.median(full(row, seed, rate)["after"] for seed in seeds) for rate in FULL_RATES
        }  # fmt: skip
        best = min(tried, key=lambda rate: tried[rate] if falls else -tried[rate])
        found |= {"full": tried[best], "rate": best}
        say(f"{row.task}: full fine-tuning {tried[best]:.3f} at {best:g}")
    return found


def main(
    tasks: Sequence[str] = (), seeds: Sequence[int] = (0,), with_full: bool = True, encoder: Path | None = None
) -> dict[str, Any]:
    """Measures the tasks, all where none is named, or a real encoder alone, and prints the table."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    rows = [row for row in ROWS if not tasks or row.task in tasks] if encoder is None else [of_encoder(encoder)]
    found = {row.task: measured(row if with_full else replace(row, full=False), seeds, print) for row in rows}
    shown = Table(title="tasks on language bases, held-out data")
    for column in ("task", "base", "metric", "untuned", "adapter", "full", "trained numbers", "seconds"):
        shown.add_column(column, justify="left" if column in ("task", "base", "metric") else "right")
    for row in rows:
        one = found[row.task]
        whole = f"{one['full']:.3f}" if "full" in one else "-"
        shown.add_row(
            row.task, Path(row.base).name, row.metric.replace("_", " "), f"{one['before']:.3f}", f"{one['after']:.3f}",
            whole, f"{one['numbers']:,.0f}", f"{one['seconds']:.0f}",
        )  # fmt: skip
    Console(width=110).print(shown)
    return found
