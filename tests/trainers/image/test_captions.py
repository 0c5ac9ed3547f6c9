"""Captions are no prompts: what the prompt language would read in them is drawn as it stands."""

from __future__ import annotations

import json

from PIL import Image

from studio.adapters import LoRA
from studio.trainers import DreamBooth, train


def test_brackets_in_captions_are_words(tiny_base, photos, tmp_path):
    task = DreamBooth(
        base=tiny_base, instance_images=photos, instance_prompt="a photo of sks (robot", preview_steps=1,
        class_prompt="a photo of [x] {robot", prior="generate", class_count=1,
    )  # fmt: skip
    run = train(
        task, adapter=LoRA(rank=2), steps=1, seed=0, output=tmp_path / "run", batch_size=1, preview_every=1,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    assert len(list((run.folder / "previews").glob("*.png"))) == 2
    (made,) = (tmp_path / "cache").rglob("class/*/*.png")
    with Image.open(made) as picture:
        said = json.loads(picture.info["studio"])
    assert said["prompt"] == said["resolved"] == r"a photo of \[x\] \{robot"
