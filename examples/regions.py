"""Two subjects in one picture, each adapter in a region of its own, in one pass.

    python examples/regions.py

Learns two subjects under the same words first, about three minutes on two cores on the embedded base; the second call
only draws.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from studio import Strength, fidelity
from studio.families.emoji_world import INSTANCE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, train

COLOUR = "pink"
PROMPT = f"a photo of sks toy on a {COLOUR} background"
SUBJECTS = ("robot", "penguin")

# where each acts: 1 inside, 0 outside; a picture or the file of one does as well (white is inside)
LEFT = torch.cat([torch.ones(64, 64), torch.zeros(64, 64)], dim=1)
RIGHT = 1 - LEFT
SOFT = torch.linspace(1.25, -0.25, 128).clamp(0, 1).expand(64, 128)

BLENDS = {
    "base": {},
    "robot": {"robot": 1.0},
    "penguin": {"penguin": 1.0},
    "both everywhere": {"robot": 1.0, "penguin": 1.0},
    "each in its half": {"robot": Strength(mask=LEFT), "penguin": Strength(mask=RIGHT)},
    "soft edges": {"robot": Strength(mask=SOFT), "penguin": Strength(mask=1 - SOFT)},
    "penguin right alone": {"penguin": Strength(mask=RIGHT)},
}


def learned(out: Path, steps: int | None) -> dict[str, Path]:
    """Trains the adapters, or finds them.

    Args:
        out: where the runs are. steps: of each training; None: the recipe's.
    """
    tasks = {
        name: DreamBooth(
            base="emoji", instance_images=INSTANCE_FOLDER / name, instance_prompt="a photo of sks toy", prior="none"
        )
        for name in SUBJECTS
    }
    return {name: train(task, steps=steps, output=out / name).adapter for name, task in tasks.items()}


def measure(pictures: list[Image.Image], plain: list[Image.Image], vae: torch.nn.Module) -> int:
    """Prints how much of each subject is in each half, and returns how often each half has more of its own.

    Args:
        pictures: of two regions, 128 x 64. plain: of the same seeds without adapters. vae: of the base.
    """
    table = {}
    for side, left in (("left", 0), ("right", 64)):
        halves, base = ([one.crop((left, 0, left + 64, 64)) for one in row] for row in (pictures, plain))
        for name in SUBJECTS:
            table[side, name] = fidelity.subject_fidelity(halves, name, COLOUR, base_images=base, vae=vae)
    print("seed  left: robot penguin  right: robot penguin")
    rows = list(zip(*table.values(), strict=True))
    for seed, (a, b, c, d) in enumerate(rows):
        print(f"{seed:4}  {a:11.2f} {b:7.2f}  {c:12.2f} {d:7.2f}")
    return sum(a > b and d > c for a, b, c, d in rows)


def main(out: Path = Path("runs/regions"), steps: int | None = None, sampling: int = 20, seeds: int = 8) -> int:
    """Trains, draws one row of pictures per blend, and measures the halves.

    Args:
        out: where everything goes. steps: of each training; None: the recipe's. sampling: denoising steps.
        seeds: how many pictures of each blend.
    """
    pipe = ImagePipeline.open("emoji")
    for name, file in learned(out, steps).items():
        pipe.load(file, name=name)
    rows = {}
    for label, blend in BLENDS.items():
        rows[label] = pipe.generate(
            PROMPT, blend=blend, seeds=range(seeds), steps=sampling, guidance=5.0, width=128, height=64
        )  # fmt: skip
    right = measure(rows["each in its half"], rows["base"], pipe.pipe.vae)
    print(f"each half has more of its own subject: {right} of {seeds} seeds")

    pictures = [picture for row in rows.values() for picture in row]
    contact_sheet(pictures, columns=seeds, row_labels=list(rows)).save(out / "regions.png")
    print(f"pictures: {out / 'regions.png'}")
    return right


if __name__ == "__main__":
    main()
