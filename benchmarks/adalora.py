"""AdaLoRA against LoRA at the rank that it ends with: ``python -m benchmarks.adalora [--seeds 0 1 2] [--steps 300]``.

A subject is taught to the embedded base from six pictures by each of them: the same task, data, draws, loss, layers and
seeds, and each method's own rate of the recipe. Then the loss is measured on pictures that neither has seen, of the
same subject on other colours, with noise and timesteps that are the same for both.

Prints both losses per subject and seed, and for AdaLoRA how many ranks the layers have kept.
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
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=6, help="what AdaLoRA starts with")
    parser.add_argument("--target", type=int, default=4, help="what it ends with on average, and LoRA has throughout")
    parser.add_argument("--samples", type=int, default=256, help="held-out samples")
    parser.add_argument("--rate", type=float, help="learning rate of both; without it the recipe's for each")
    options = parser.parse_args()
    configs: dict[str, AdapterConfig] = {
        "lora": LoRA(rank=options.target, targets=LAYERS),
        "adalora": AdaLoRA(rank=options.rank, target_rank=options.target, targets=LAYERS),
    }
    found: dict[str, list[float]] = {name: [] for name in ("base", *configs)}
    for subject in options.subjects:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                task = task_for(subject, folder / "shown", SHOWN, 6, seed)
                unseen = task_for(subject, folder / "unseen", UNSEEN, 8, seed + 1000)
                line = f"{subject} {seed}:"
                found["base"].append(held_out(unseen, None, options.samples))
                line += f" base {found['base'][-1]:.4f}"
                for name, config in configs.items():
                    begin = time.perf_counter()
                    run = train(
                        task, adapter=config, steps=options.steps, seed=seed, learning_rate=options.rate,
                        output=folder / name, quiet=True, cache=str(folder / "cache"), checkpoint_every=0,
                    )  # fmt: skip
                    seconds = time.perf_counter() - begin
                    found[name].append(held_out(unseen, run.adapter, options.samples))
                    line += f"  {name} {found[name][-1]:.4f} ({seconds:.0f} s)"
                ranks = ranks_of(folder / "adalora" / "adapter.safetensors")
                spread = ", ".join(f"{rank}: {count}" for rank, count in sorted(Counter(ranks).items()))
                print(f"{line}  ranks {sum(ranks)} of {options.rank * len(ranks)}, rank: layers = {spread}", flush=True)
    means = {name: statistics.fmean(losses) for name, losses in found.items()}
    worse = sum(ours > plain for ours, plain in zip(found["adalora"], found["lora"], strict=True))
    print("mean " + "  ".join(f"{name} {loss:.4f}" for name, loss in means.items()))
    print(f"AdaLoRA's held-out loss is higher in {worse} of {len(found['lora'])} runs")


if __name__ == "__main__":
    main()
