"""AdaLoRA against LoRA at the rank that it ends with: ``python -m benchmarks.adalora [--seeds 0 1 2] [--steps 200]``.

A subject is taught to the embedded base from six pictures by each of them: the same task, data, draws, rates, loss,
layers and seeds. Then the loss is measured on pictures that neither has seen, with noise and timesteps that are the
same for both: of the subject on the same colours, and on other ones (where a subject that was learned too well loses).

Prints the losses per subject and seed, and for AdaLoRA how many ranks the layers have kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from studio import fidelity
from studio.adapters import AdaLoRA, AdapterConfig, LoRA
from studio.files import load
from studio.trainers import DreamBooth, Plan, train

SHOWN, UNSEEN = ("white", "yellow"), ("red", "green", "blue", "purple")
SETS = {"same colours": SHOWN, "other colours": UNSEEN}
LAYERS = "attention+mlp"


def task_for(subject: str, folder: Path, colours: tuple[str, ...], count: int, seed: int) -> DreamBooth:
    """A task on pictures of the subject; writes them."""
    folder.mkdir(parents=True)
    for index, picture in enumerate(fidelity.instance_set(subject, colours, count, seed)):
        picture.save(folder / f"{index}.png")
    return DreamBooth(
        base="emoji", instance_images=folder, instance_prompt=f"a photo of sks {subject}", preview_prompts=()
    )


@torch.no_grad()
def held_out(task: DreamBooth, adapter: Path | None, samples: int) -> float:
    """The loss of an adapter (None: of the base) on a task that it was not trained on."""
    lesson = task.open(None, Plan(seed=2024, batch_size=8), lambda line: None)
    lesson.prepare(lambda line: None)
    if adapter is not None:
        load(lesson.model, adapter)
    losses = [float(lesson.loss(range(at, at + 8)).total) for at in range(0, samples, 8)]
    lesson.close()
    return statistics.fmean(losses)


def ranks_of(file: Path) -> list[int]:
    """How many ranks each layer of an AdaLoRA file has."""
    from safetensors.torch import load_file

    return [int((values != 0).sum()) for key, values in load_file(file).items() if key.endswith("lora_E")]


def main() -> None:
    """Trains both on all subjects and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=["robot", "penguin"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=12, help="what AdaLoRA starts with")
    parser.add_argument("--target", type=int, default=8, help="what it ends with on average, and LoRA has throughout")
    parser.add_argument("--samples", type=int, default=256, help="held-out samples")
    parser.add_argument("--rate", type=float, help="learning rate of both; without it the recipe's")
    options = parser.parse_args()
    configs: dict[str, AdapterConfig] = {
        "lora": LoRA(rank=options.target, targets=LAYERS),
        "adalora": AdaLoRA(rank=options.rank, target_rank=options.target, targets=LAYERS),
    }
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in ("base", *configs)} for kind in SETS}
    for subject in options.subjects:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                task = task_for(subject, folder / "shown", SHOWN, 6, seed)
                sets = {kind: task_for(subject, folder / kind, SETS[kind], 8, seed + 1000) for kind in SETS}
                files: dict[str, Path | None] = {"base": None}
                seconds = []
                for name, config in configs.items():
                    begin = time.perf_counter()
                    files[name] = train(
                        task, adapter=config, steps=options.steps, seed=seed, learning_rate=options.rate,
                        output=folder / name, quiet=True, cache=str(folder / "cache"), checkpoint_every=0,
                    ).adapter  # fmt: skip
                    seconds.append(f"{name} {time.perf_counter() - begin:.0f} s")
                print(f"{subject} {seed} ({', '.join(seconds)})")
                for kind, other in sets.items():
                    for name, file in files.items():
                        found[kind][name].append(held_out(other, file, options.samples))
                    losses = "  ".join(f"{name} {found[kind][name][-1]:.4f}" for name in files)
                    print(f"  {kind:14} {losses}")
                ranks = ranks_of(folder / "adalora" / "adapter.safetensors")
                spread = ", ".join(f"{rank}: {count}" for rank, count in sorted(Counter(ranks).items()))
                print(f"  ranks {sum(ranks)} of {options.rank * len(ranks)}; rank: layers = {spread}", flush=True)
    for kind, table in found.items():
        means = "  ".join(f"{name} {statistics.fmean(losses):.4f}" for name, losses in table.items())
        better = sum(ours <= plain for ours, plain in zip(table["adalora"], table["lora"], strict=True))
        print(f"mean, {kind}: {means}; AdaLoRA is no worse in {better} of {len(table['lora'])} runs")


if __name__ == "__main__":
    main()
