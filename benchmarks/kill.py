"""Kill trials: ``kill -9`` at a random moment of a run, then the same command, until it ends; the bytes must be equal.

    python -m benchmarks.kill [--trials 5] [--steps 40] [--seed 0]

Each trial starts the same training in a process of its own, kills it somewhere (between any two lines of the program,
checkpoints included), starts it again, kills it once more, and lets the third finish. The adapter is compared byte
for byte with that of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import sys
import torch
torch.set_num_threads(1)
from studio.adapters import LoRA
from studio.trainers import DreamBooth, train
images, output, steps = sys.argv[1:]
task = DreamBooth(
    base="emoji", instance_images=images, instance_prompt="a photo of sks robot", class_prompt="a photo of robot",
    prior="self", text_encoder=True, preview_prompts=(), flip=True,
)
train(task, adapter=LoRA(rank=4, dropout=0.1), steps=int(steps), batch_size=2, checkpoint_every=3, ema=0.9, quiet=True,
      cache=output + "-cache", output=output)
"""


def start(images: Path, output: Path, steps: int) -> subprocess.Popen[bytes]:
    """Starts the training in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(images), str(output), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a training."""
    _, problem = process.communicate()
    if process.returncode:
        raise SystemExit(f"the training failed:\n{problem.decode()}")


def lines(log: Path) -> int:
    """Returns how many steps a run has logged."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_at(process: subprocess.Popen[bytes], log: Path, step: int, delay: float) -> None:
    """Kills a training ``delay`` seconds after it has logged ``step``, or ends with it."""
    while lines(log) < step and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def trial(number: int, chance: random.Random, folder: Path, images: Path, steps: int, whole: bytes) -> bool:
    """Runs one trial and prints what happened."""
    output = folder / f"trial{number}"
    stops = sorted(chance.sample(range(1, steps), 2))
    for step in stops:
        kill_at(start(images, output, steps), output / "log.jsonl", step, chance.random() * 0.3)
    reached = lines(output / "log.jsonl")
    finish(start(images, output, steps))
    equal = (output / "adapter.safetensors").read_bytes() == whole
    left = sorted(str(file.relative_to(output)) for file in output.rglob("*.state"))
    print(
        f"trial {number}: killed after steps {stops[0]} and {stops[1]} (log at {reached}), resumed: "
        f"{'byte-identical' if equal else 'DIFFERENT'}{f', left over: {left}' if left else ''}",
        flush=True,
    )
    return equal


def main() -> None:
    """Runs the trials; exit code 1 if any adapter differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from studio.families.emoji_world import instance_set

    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        for index, picture in enumerate(instance_set("robot", ("white", "yellow"), 6)):
            picture.save(images / f"{index}.png")
        finish(start(images, folder / "whole", asked.steps))
        whole = (folder / "whole" / "adapter.safetensors").read_bytes()
        equal = [trial(n + 1, chance, folder, images, asked.steps, whole) for n in range(asked.trials)]
    print(f"{sum(equal)} of {len(equal)} byte-identical")
    raise SystemExit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
