"""How strong is right? One adapter at many strengths, all in one batch, drawn and measured.

    python examples/strength_sweep.py

Learns a subject first, about a minute and a half on two cores on the embedded base; the second call only draws.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from studio import fidelity
from studio.families.emoji_world import INSTANCE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, train

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
COLOURS = ("pink", "blue", "green")


def learned(out: Path, steps: int | None) -> Path:
    """Trains the adapter, or finds it.

    Args:
        out: where the run is. steps: of the training; None: the recipe's.
    """
    robot = DreamBooth(
        base="emoji",
        instance_images=INSTANCE_FOLDER / "robot",
        instance_prompt="a photo of sks robot",
        class_prompt=("a photo of robot", "a photo of tiger"),
    )
    return train(robot, steps=steps, output=out / "robot").adapter


def measure(rows: dict[str, list[Any]], vae: Any) -> None:
    """Prints, strength by strength, how well subject and background came out.

    Args:
        rows: colour -> its pictures, one per strength, the base's own first. vae: the base's.
    """
    print("strength  subject  background")
    for column, strength in enumerate(STRENGTHS):
        drawn = {colour: row[column] for colour, row in rows.items()}
        subject = [
            fidelity.subject_fidelity([picture], "robot", colour, base_images=[rows[colour][0]], vae=vae)[0]
            for colour, picture in drawn.items()
        ]
        right = [fidelity.prompt_fidelity(picture, colour) for colour, picture in drawn.items()]
        print(f"{strength:8.2f} {statistics.fmean(subject):8.2f} {statistics.fmean(right):11.0%}")


def main(out: Path = Path("runs/sweep"), steps: int | None = 600, sampling: int = 20) -> None:
    """Trains, draws every colour at every strength, and measures them.

    Args:
        out: where everything goes. steps: of the training. sampling: denoising steps of each picture.
    """
    pipe = ImagePipeline.open("emoji")
    pipe.load(learned(out, steps), name="robot")
    prompts = [f"a photo of sks robot on a {colour} background" for colour in COLOURS for _ in STRENGTHS]
    strengths = list(STRENGTHS) * len(COLOURS)  # one entry per picture: pictures of all strengths share their batches
    pictures = pipe.generate(
        prompts, blend={"robot": strengths}, seeds=[0], steps=sampling, guidance=3.0, batch_size=len(STRENGTHS)
    )  # fmt: skip
    count = len(STRENGTHS)
    measure({one: pictures[row * count :][:count] for row, one in enumerate(COLOURS)}, pipe.pipe.vae)

    labels = [f"{strength:g}" for strength in STRENGTHS]
    sheet = contact_sheet(
        pictures, columns=count, column_labels=labels, row_labels=COLOURS, title="sks robot, by strength"
    )  # fmt: skip
    sheet.save(out / "sweep.png")
    print(f"pictures: {out / 'sweep.png'}")


if __name__ == "__main__":
    main()
