"""Language bases: ``python -m benchmarks.language``, ``--methods lora ia3``, or ``--speed``.

Without words, every task on a base that comes with the studio, full fine-tuning beside it
(:mod:`benchmarks.language_tasks`); with ``--speed``, a training beside PEFT and Trainer
(:mod:`benchmarks.language_speed`); with ``--methods``, what each method makes of ``facts``:

The embedded base has read every fact as statements and has never seen a question answered. Each method is tuned on the
questions about some subjects, with the recipe's settings, and measured on those about all the others: the mean loss per
token of the right answers, and the share of answers that are right to the letter. Full fine-tuning runs the same task,
data, draws and schedule over all weights, at the best of the rates of :data:`FULL_RATES`.

Prints one row per method: medians over the seeds; writes ``results.json`` into the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import language_speed, language_tasks
from studio.adapters import METHODS
from studio.families.language import open_language_base, sample_file
from studio.trainers import CausalLM, train
from studio.trainers.loop.mode import training_mode
from studio.trainers.loop.optimizer import adamw, set_rates
from studio.trainers.loop.plan import Plan

COMPARED: Final = ("lora", "ia3", "prompttuning", "prefixtuning")
"""The methods that are shown where none are asked for."""
FULL_RATES: Final = (1e-4, 3e-4, 1e-3)
"""Learning rates of full fine-tuning that are tried; LoRA's 4e-3 would take the base apart."""

Row = dict[str, float]


def task_for(answers: int) -> CausalLM:
    """The task: the base's own questions."""
    return CausalLM(
        base="facts", data=sample_file("facts", "train.jsonl"), held_out=sample_file("facts", "held-out.jsonl"),
        answers=answers, preview_prompts=(),
    )  # fmt: skip


def tuned(method: str, seed: int, options: argparse.Namespace) -> Row:
    """Tunes with one method; the base's own figures come along under ``before``."""
    config: dict[str, Any] = {"targets": "attention+mlp"} if layered(method) else {}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            task_for(options.answers), adapter=METHODS[method](**config), output=Path(folder) / "run", seed=seed,
            steps=options.steps, quiet=True,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        from studio.files import inspect

        numbers = inspect(run.adapter).parameters
    first, last = min(run.measures), max(run.measures)
    before = {f"before_{name}": value for name, value in run.measures[first].items()}
    return {**before, **run.measures[last], "numbers": numbers, "seconds": seconds}


def layered(method: str) -> bool:
    """Whether a method changes layers, and so takes targets."""
    return "model" not in METHODS[method].adapter.kinds


def full(seed: int, rate: float, options: argparse.Namespace) -> Row:
    """Fine-tunes all weights on the same task."""
    begin = time.perf_counter()
    lesson = task_for(options.answers).open(
        METHODS["lora"](), Plan(steps=options.steps, seed=seed, learning_rate=rate), lambda line: None
    )
    model, plan = lesson.model, lesson.plan
    assert plan.steps is not None and plan.batch_size is not None, "the plan has been filled"
    weights = dict(model.named_parameters())
    optimizer = adamw(weights, {"": rate}, plan.weight_decay, plan.beta2 or 0.999)
    with training_mode([model]):
        for step in range(plan.steps):
            set_rates(optimizer, plan.rate_factor(step))
            lesson.loss(range(step * plan.batch_size, (step + 1) * plan.batch_size)).total.backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    numbers = sum(weight.numel() for weight in weights.values())
    return {**lesson.measure(), "numbers": numbers, "seconds": time.perf_counter() - begin}


def median(rows: list[Row]) -> Row:
    """Medians by name."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def table(results: dict[str, list[Row]]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"questions about subjects that no sample names, {machine()}")
    for column in ("method", "trained numbers", "held-out loss", "exact match", "seconds"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for method, rows in results.items():
        row = median(rows)
        numbers = f"{row['numbers']:,.0f}" if row.get("numbers") else "-"
        seconds = f"{row['seconds']:.0f}" if row.get("seconds") else "-"
        shown.add_row(method, numbers, f"{row['held_out_loss']:.3f}", f"{row['exact_match']:.1%}", seconds)
    Console(width=110).print(shown)


def machine() -> str:
    """What it runs on."""
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, torch {torch.__version__}, {platform.machine()}"


def asked() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--methods", nargs="*", default=None, choices=list(METHODS), help="none named: the usual four")
    what.add_argument("--tasks", nargs="+", default=(), choices=[row.task for row in language_tasks.ROWS])
    what.add_argument("--encoder", type=Path, metavar="FOLDER", help="classify on a real encoder (BERT's family)")
    what.add_argument("--speed", action="store_true", help="a step beside that of PEFT and Trainer")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=None, help="of --methods; None: the recipe's")
    parser.add_argument("--answers", type=int, default=200, help="of --methods: held-out questions that are answered")
    parser.add_argument("--no-full", action="store_true", help="without full fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-language"))
    return parser.parse_args()


def main() -> None:
    """Runs what is asked for."""
    options = asked()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.speed or options.methods is None:
        found = (
            language_speed.main() if options.speed
            else language_tasks.main(options.tasks, options.seeds, not options.no_full, options.encoder)
        )  # fmt: skip
        (options.out / ("speed.json" if options.speed else "tasks.json")).write_text(json.dumps(found, indent=2))
        return
    options.methods = options.methods or list(COMPARED)
    base = open_language_base("facts")
    print(f"base facts: {base.parameters:,} weights; {', '.join(options.methods)}", flush=True)
    results: dict[str, list[Row]] = {}
    for method in options.methods:
        rows = [tuned(method, seed, options) for seed in options.seeds]
        results.setdefault("untuned", [untuned(row) for row in rows])
        results[method] = rows
        print(method, json.dumps({name: round(value, 3) for name, value in median(rows).items()}), flush=True)
    if not options.no_full:
        tried = {rate: [full(seed, rate, options) for seed in options.seeds] for rate in FULL_RATES}
        best = min(tried, key=lambda rate: median(tried[rate])["held_out_loss"])
        results[f"full, rate {best:g}"] = tried[best]
    (options.out / "results.json").write_text(json.dumps(results, indent=2))
    table(results)


def untuned(row: Row) -> Row:
    """The base's own figures."""
    return {name.removeprefix("before_"): value for name, value in row.items() if name.startswith("before_")}


if __name__ == "__main__":
    main()
