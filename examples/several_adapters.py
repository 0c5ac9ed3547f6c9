"""Several adapters in one picture: what they do to each other, held together, by tags, and one after the other.

    python examples/several_adapters.py

Learns a subject and a style first, about three minutes on two cores on the embedded base; the second call only draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import studio
from studio.families.emoji_world import INSTANCE_FOLDER, STYLE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, Style, train

PROMPTS = ["a photo of sks robot on a pink background", "twemoji style, owl on a pink background"]


def learned(out: Path, steps: int | None) -> dict[str, Path]:
    """Trains the two adapters, or finds them.

    Args:
        out: where the runs are. steps: of each training; None: the recipe's.
    """
    robot = DreamBooth(
        base="emoji",
        instance_images=INSTANCE_FOLDER / "robot",
        instance_prompt="a photo of sks robot",
        class_prompt=("a photo of robot", "a photo of tiger", "a photo of rocket on a green background"),
    )
    style = Style(base="emoji", images=STYLE_FOLDER, trigger="twemoji style")
    tasks = {"robot": robot, "style": style}
    return {name: train(task, steps=steps, output=out / name).adapter for name, task in tasks.items()}


def main(out: Path = Path("runs/several"), steps: int | None = 600, sampling: int = 20) -> None:
    """Trains, tells what the adapters do to each other, and draws one row of pictures per blend.

    Args:
        out: where everything goes. steps: of each training. sampling: denoising steps of each picture.
    """
    pipe = ImagePipeline.open("emoji")
    for name, file in learned(out, steps).items():
        pipe.load(file, name=name)
    both = {"robot": 1.0, "style": 1.0}
    print(studio.blend_report(pipe.pipe, both))

    half = {"robot": studio.Strength(1.0, schedule=[(0.0, 1.0), (0.5, 1.0), (0.5, 0.0)]),
            "style": studio.Strength(1.0, schedule=[(0.0, 0.0), (0.5, 0.0), (0.5, 1.0)])}  # fmt: skip
    blends = {
        "base": {},
        "robot": {"robot": 1.0},
        "style": {"style": 1.0},
        "both": both,
        "both, normalized": studio.normalized(pipe.pipe, both),
        "robot, then style": half,
    }
    asked: dict[str, Any] = {"seeds": [0, 1], "steps": sampling, "guidance": 3.0, "batch_size": 4}
    rows = {label: pipe.generate(PROMPTS, blend=blend, **asked) for label, blend in blends.items()}
    tagged = [f"{PROMPTS[0]} <robot:0.9> <style:0.3>", f"{PROMPTS[1]} <style:1.2>"]
    rows["by tags"] = pipe.generate(tagged, **asked)

    pictures = [picture for row in rows.values() for picture in row]
    columns = [prompt for prompt in PROMPTS for _ in asked["seeds"]]
    contact_sheet(pictures, columns=4, row_labels=list(rows), column_labels=columns).save(out / "several.png")
    print(f"pictures: {out / 'several.png'}")


if __name__ == "__main__":
    main()
