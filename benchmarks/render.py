"""A list of jobs, rendered, beside the same list in a plain loop of diffusers and ``peft``.

Run it with ``python -m benchmarks.render [--jobs N] [--rounds N] [--batch-size N] [--threads N] [--json FILE]``: jobs
over a few adapters (LoRA of rank 8 on the attention of the embedded base), two of which act on each picture, in ten
steps under guidance. The loop sets the adapters of each job, calls the pipeline and saves the picture; ``render`` does
the same and what else it does: hashes, claims, texts in the pictures, files that are whole, the manifest. Both are
warm: bases are open, and each adapter was loaded once. A round draws a part of the list of its own, first the one, then
the other, in turns; the figure is the median over the rounds of the ratio within a round, of the time on the wall and
of that of the processor, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import studio
from studio.pipelines import ImagePipeline, render

GOAL = 1.5
NAMES = ("ink", "robot", "sun", "wave")
PROMPTS = (
    "tiger on a blue background",
    "rocket",
    "red heart on a pink background",
    "a fox",
    "pizza on a red background",
)


Taken = tuple[float, float]


def now() -> Taken:
    """Seconds on the wall and of the processor."""
    return time.perf_counter(), time.process_time()


def since(begun: Taken) -> Taken:
    """Seconds that have passed.

    Args:
        begun: when they began.
    """
    wall, processor = now()
    return wall - begun[0], processor - begun[1]


def adapters(folder: Path) -> dict[str, Path]:
    """Writes adapters that act, in diffusers' format, which both sides read.

    Args:
        folder: where to.
    """
    pipe = ImagePipeline.open("emoji")
    for seed, name in enumerate(NAMES):
        studio.attach(pipe.pipe, studio.LoRA(rank=8), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in studio.state(pipe.pipe, name).items():
                if key.endswith(".up"):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
        studio.save(pipe.pipe, folder / f"{name}.safetensors", name=name, format="diffusers")
    return {name: folder / f"{name}.safetensors" for name in NAMES}


def jobs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Jobs of which any two neighbours differ in prompt, seed and blend.

    Args:
        count: how many. first: the seed of the first.
    """
    made = []
    for seed in range(first, first + count):
        one, other = NAMES[seed % 4], NAMES[(seed + 1 + seed // 4 % 3) % 4]
        made.append({"prompt": PROMPTS[seed % 5], "seed": seed, "steps": 10, "guidance": 3.0,
                     "blend": {one: 0.5 + seed % 3 * 0.25, other: 0.4}})  # fmt: skip
    return made


class Loop:
    """The plain loop.

    Args:
        files: of the adapters, by name.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self.pipe = ImagePipeline.open("emoji").pipe
        self.pipe.set_progress_bar_config(disable=True)
        diffusers.logging.set_verbosity_error()
        warnings.simplefilter("ignore", UserWarning)  # of peft, about the second adapter
        for name, file in files.items():
            self.pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)

    def __call__(self, some: Sequence[dict[str, Any]], folder: Path) -> Taken:
        """Draws jobs.

        Args:
            some: the jobs. folder: where to.

        Returns:
            Seconds on the wall and of the processor.
        """
        folder.mkdir()
        begun = now()
        for job in some:
            self.pipe.set_adapters(list(job["blend"]), list(job["blend"].values()))
            drawn = self.pipe(
                job["prompt"], num_inference_steps=job["steps"], guidance_scale=job["guidance"],
                generator=torch.Generator().manual_seed(job["seed"]),
            )  # fmt: skip
            drawn.images[0].save(folder / f"{job['seed']:05}.png")
        return since(begun)


def rendered(some: Sequence[dict[str, Any]], folder: Path, files: dict[str, Path], rows: int) -> Taken:
    """Renders jobs; the base was opened when the clock starts.

    Args:
        some: the jobs. folder: where to. files: of the adapters. rows: pictures that are computed together.

    Returns:
        Seconds on the wall and of the processor.
    """
    begun: list[Taken] = []
    done = render(
        list(some), folder, base="emoji", adapters=files, batch_size=rows, device="cpu",
        on_start=lambda count: begun.append(now()),
    )  # fmt: skip
    taken = since(begun[0])
    assert done.drawn == len(some), done.failures
    return taken


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=32, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as name:
        rounds = measured(Path(name), asked)
    ratios = [statistics.median(plain[one] / ours[one] for plain, ours in rounds) for one in (0, 1)]
    speed = [asked.jobs / statistics.median(taken[0] for taken in side) for side in zip(*rounds, strict=True)]
    print(f"{speed[0]:.2f} pictures a second in the loop, {speed[1]:.2f} rendered: {ratios[0]:.2f}× (goal {GOAL}×), "
          f"by the processor's time {ratios[1]:.2f}×")  # fmt: skip
    if asked.json:
        said = {"jobs": asked.jobs, "batch_size": asked.batch_size, "threads": asked.threads, "goal": GOAL}
        asked.json.write_text(json.dumps({"ratio": ratios[0], "processor": ratios[1], "rounds": rounds, **said}))


def measured(folder: Path, asked: argparse.Namespace) -> list[tuple[Taken, Taken]]:
    """Returns what the loop and the rendering took in each round.

    Args:
        folder: where to. asked: the command line.
    """
    files, rounds = adapters(folder), []
    loop = Loop(files)
    loop(jobs(4), folder / "warm-loop")
    rendered(jobs(4), folder / "warm-render", files, asked.batch_size)
    for number in range(asked.rounds):
        some = jobs(asked.jobs, first=number * asked.jobs)
        plain = loop(some, folder / f"loop-{number}")
        ours = rendered(some, folder / f"render-{number}", files, asked.batch_size)
        rounds.append((plain, ours))
        print(f"round {number + 1}: loop {plain[0]:.1f} s, render {ours[0]:.1f} s, {plain[0] / ours[0]:.2f}×, "
              f"processor {plain[1] / ours[1]:.2f}×", flush=True)  # fmt: skip
    return rounds


if __name__ == "__main__":
    main()
