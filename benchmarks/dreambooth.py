"""DreamBooth against the truth: ``python -m benchmarks.dreambooth [--subjects robot] [--seeds 0 1 2] [--out FOLDER]``.

Every subject is taught from six pictures on two colours with nothing but the instance prompt, and drawn on colours that
no instance picture has. The embedded base has seen none of the subjects, and the true picture of every prompt is known
(:mod:`studio.fidelity`). Where ``peft`` is installed, each run is repeated with its LoRA in the place of ours: the same
task, data, draws, loss, layers, rank, rates, optimizer, steps and seed.

Prints one row per subject and side with mean subject fidelity, the share of pictures whose nearest emoji is the right
one, and prompt fidelity; writes the pictures of every run as one sheet into the output folder, and ``results.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studio import fidelity
from studio.adapters.targets.find import search_targets
from studio.families import components
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, train
from studio.trainers.loop.optimizer import adamw, set_rates
from studio.trainers.loop.plan import Plan

SUBJECTS = ("robot", "penguin", "teddy bear", "hamburger")
SHOWN = ("white", "yellow")
UNSEEN = ("red", "green", "blue", "purple")
PEFT = importlib.util.find_spec("peft") is not None


def task_for(subject: str, folder: Path, seed: int) -> DreamBooth:
    """The task with the three facts; writes the instance pictures."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(fidelity.instance_set(subject, SHOWN, 6, seed)):
        picture.save(photos / f"{index}.png")
    return DreamBooth(
        base="emoji", instance_images=photos, instance_prompt=f"a photo of sks {subject}", preview_prompts=()
    )


def draw(pipe: ImagePipeline, subject: str, seeds: list[int], guidance: float) -> dict[str, list[Image.Image]]:
    """Pictures of the subject on every unseen colour."""
    drawn = {}
    for colour in UNSEEN:
        prompt = f"a photo of sks {subject} on a {colour} background"
        drawn[colour] = pipe.generate(prompt, seeds=seeds, guidance=guidance, batch_size=len(seeds))
    return drawn


def measure(
    subject: str, pictures: dict[str, list[Image.Image]], base: dict[str, list[Image.Image]], vae: Any
) -> dict[str, float]:
    """Means over all pictures of a run."""
    fidelities, nearest, prompts = [], [], []
    for colour, drawn in pictures.items():
        fidelities += fidelity.subject_fidelity(drawn, subject, colour, base_images=base[colour], vae=vae)
        nearest += [fidelity.rank(picture, subject, colour) == 1 for picture in drawn]
        prompts += [fidelity.prompt_fidelity(picture, colour) for picture in drawn]
    return {
        "subject": statistics.fmean(fidelities),
        "nearest": statistics.fmean(nearest),
        "prompt": statistics.fmean(prompts),
    }


@contextlib.contextmanager
def peft_run(task: DreamBooth, steps: int | None, seed: int) -> Iterator[ImagePipeline]:
    """Trains the same task with ``peft``'s LoRA and gives the pipeline that carries it."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    lesson = task.open(None, Plan(steps=steps, seed=seed), lambda line: None)
    plan, config, pipe = lesson.plan, lesson.adapter, lesson.model
    lesson.prepare(lambda line: None)
    parts = components(pipe)
    torch.manual_seed(seed)
    trained: dict[str, torch.Tensor] = {}
    layers: list[Any] = []
    for component in lesson.rates:
        found = search_targets(parts, config.targets, chosen=[component])[0][component]
        parts[component].requires_grad_(False)
        settings = LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=found)
        inject_adapter_in_model(settings, parts[component])
        parts[component].train()
        layers += [module for module in parts[component].modules() if isinstance(module, BaseTunerLayer)]
        for key, parameter in parts[component].named_parameters():
            if parameter.requires_grad:
                trained[f"{component}.{key}"] = parameter

    @contextlib.contextmanager
    def bare() -> Iterator[None]:
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    lesson.bare = bare
    optimizer = adamw(trained, lesson.rates, plan.weight_decay, plan.beta2)
    for step in range(plan.steps):
        set_rates(optimizer, plan.rate_factor(step))
        numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
        lesson.loss(numbers).total.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for component in lesson.rates:
        parts[component].eval()
    yield ImagePipeline.open(pipe)
    lesson.close()


Rows = dict[str, dict[str, float]]


def run_one(subject: str, seed: int, options: argparse.Namespace, out: Path) -> Rows:
    """Trains and measures one subject with one seed, ours and theirs; keys are "<side>, guidance <g>"."""
    seeds = [10_000 * (seed + 1) + index for index in range(options.pictures)]
    rows: Rows = {}
    shown: dict[str, dict[str, list[Image.Image]]] = {}

    def compare(side: str, pipe: ImagePipeline, seconds: float) -> None:
        for guidance in options.guidance:
            key = f"{side}, guidance {guidance:g}"
            shown[key] = draw(pipe, subject, seeds, guidance)
            if side != "base":
                base = shown[f"base, guidance {guidance:g}"]
                rows[key] = {**measure(subject, shown[key], base, pipe.pipe.vae), "seconds": seconds}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        task = task_for(subject, folder, seed)
        pipe = ImagePipeline.open("emoji")
        compare("base", pipe, 0.0)
        begin = time.perf_counter()
        cache = str(folder / "cache")
        run = train(task, steps=options.steps, seed=seed, output=folder / "run", quiet=True, cache=cache)
        seconds = time.perf_counter() - begin
        pipe.load(run.adapter, name="subject")
        compare("studio", pipe, seconds)
        if PEFT and not options.no_peft:
            begin = time.perf_counter()
            with peft_run(task, options.steps, seed) as other:
                compare("peft", other, time.perf_counter() - begin)
    flat = [picture for drawn in shown.values() for colour in UNSEEN for picture in drawn[colour]]
    labels = [colour for colour in UNSEEN for _ in seeds]
    rows_of = list(shown)
    sheet = contact_sheet(
        flat, columns=len(labels), column_labels=labels, row_labels=rows_of, title=f"{subject} {seed}"
    )
    sheet.save(out / f"{subject.replace(' ', '-')}-{seed}.png")
    return rows


def table(results: dict[str, list[Rows]]) -> None:
    """Prints means per subject and side, and over all."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="subjects on unseen backgrounds")
    columns = ("subject", "nearest", "prompt", "seconds")
    for column in ("what", "trained with", "subject fidelity", "right one nearest", "prompt fidelity", "seconds"):
        shown.add_column(column, justify="left" if column in ("what", "trained with") else "right")
    everything = [run for runs in results.values() for run in runs]
    for what, runs in [*results.items(), ("all", everything)]:
        for side in everything[0]:
            means = {name: statistics.fmean(run[side][name] for run in runs) for name in columns}
            values = (f"{means['subject']:.3f}", f"{means['nearest']:.0%}", f"{means['prompt']:.0%}")
            shown.add_row(f"{what} ({len(runs)} runs)", side, *values, f"{means['seconds']:.0f}")
        shown.add_section()
    Console(width=120).print(shown)


def main() -> None:
    """Runs all subjects and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=2, help="pictures per colour and run")
    parser.add_argument("--steps", type=int, default=None, help="None: the recipe's")
    parser.add_argument("--guidance", nargs="+", type=float, default=[3.0, 5.0])
    parser.add_argument("--merge", nargs="+", type=Path, help="print the table of earlier results.json files instead")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-dreambooth"))
    options = parser.parse_args()
    if options.merge:
        merged: dict[str, list[Rows]] = {}
        for file in options.merge:
            for subject, runs in json.loads(file.read_text()).items():
                merged.setdefault(subject, []).extend(runs)
        table(merged)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Rows]] = {}
    for subject in options.subjects:
        for seed in options.seeds:
            rows = run_one(subject, seed, options, options.out)
            results.setdefault(subject, []).append(rows)
            brief = {side: [round(value, 3) for value in row.values()] for side, row in rows.items()}
            print(subject, seed, json.dumps(brief), flush=True)
            (options.out / "results.json").write_text(json.dumps(results, indent=2))
    table(results)


if __name__ == "__main__":
    main()
