"""Draw a list of jobs: a grid of prompts, strengths and seeds that can be stopped at any time and goes on by itself.

    python examples/batch_render.py

Learns a subject first, about two minutes on two cores on the embedded base; the second call finds everything done.
"""

from __future__ import annotations

from pathlib import Path

from studio.families.emoji_world import INSTANCE_FOLDER
from studio.pipelines import contact_sheet, render
from studio.pipelines.metadata import open_picture
from studio.trainers import DreamBooth, train

STRENGTHS = [0, 0.5, 1]
PROMPTS = ["a photo of sks robot on a pink background", "a photo of sks robot on a blue background", "a photo of tiger"]


def main(out: Path = Path("runs/batch"), steps: int = 300, sampling: int = 10) -> None:
    """Trains, renders the list, and lays the pictures out: one row per strength.

    Args:
        out: where everything goes. steps: of the training. sampling: denoising steps of each picture.
    """
    robot = train(
        DreamBooth(
            base="emoji",
            instance_images=INSTANCE_FOLDER / "robot",
            instance_prompt="a photo of sks robot",
            class_prompt=("a photo of robot", "a photo of tiger"),
        ),
        steps=steps,
        output=out / "robot",
    )
    jobs = {
        "base": "emoji",
        "adapters": {"robot": str(robot.adapter)},
        "defaults": {"steps": sampling, "guidance": 3, "seeds": "0..1"},
        "jobs": [{"axes": {"strength:robot": STRENGTHS, "prompt": PROMPTS}}],
    }
    done = render(jobs, out / "pictures", batch_size=6)
    for failure in done.failures:
        print(failure.error)
    print(f"{len(done.pictures)} pictures, {done.found} of them there already: {done.folder}")

    pictures = [open_picture(file) for file in done.pictures]  # by strength, prompt and seed, the last fastest
    labels = [f"robot {strength}" for strength in STRENGTHS]
    contact_sheet(pictures, columns=2 * len(PROMPTS), row_labels=labels).save(out / "sheet.png")


if __name__ == "__main__":
    main()
