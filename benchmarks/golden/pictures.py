"""Pictures of the embedded base: alone, with adapters, tags and blends, baked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import PngImagePlugin

import studio
from benchmarks.golden.inputs import PROMPT
from benchmarks.golden.runs import INK, ROBOT
from studio.pipelines import ImagePipeline


def draw(name: str, pipe: ImagePipeline, prompt: str | list[str], **options: Any) -> None:
    """Writes pictures as PNG, with their texts in them and beside them."""
    for index, image in enumerate(pipe.generate(prompt, **{"steps": 6, **options})):
        texts, file = PngImagePlugin.PngInfo(), Path("pictures", f"{name}-{index}.png")
        for key in ("parameters", "studio"):
            texts.add_text(key, image.info[key])
        file.parent.mkdir(exist_ok=True)
        image.save(file, pnginfo=texts)
        file.with_suffix(".txt").write_text(f"{image.info['parameters']}\n{image.info['studio']}\n", encoding="utf-8")


def make_pictures() -> None:
    """Draws with the adapters of two runs."""
    pipe = ImagePipeline.open("emoji")
    draw("base", pipe, ["tiger on a blue background", PROMPT], seeds=[0, 1])
    pipe.load(ROBOT, name="robot")
    draw("robot", pipe, PROMPT)
    pipe.load(INK, name="ink", strength=0.5)
    draw("both", pipe, f"ink style, {PROMPT}", guidance=3.0, negative="a cat", seeds=[2, 3], batch_size=2)
    draw("tag", pipe, f"{PROMPT} <robot:0.9>")
    draw("tags", pipe, f"ink style, {PROMPT} <robot:unet=0.8> <lora:ink:0.5>", scheduler="euler-a")
    draw("blend", pipe, PROMPT, blend={"robot": 0.8, "ink": 0.4}, width=96, height=64)
    per_image = [{"robot": 1.0}, {"ink": studio.Strength(0.7, blocks={"up_blocks.*": 0.5})}]
    draw("blends", pipe, PROMPT, seeds=[4, 5], blend=per_image, batch_size=2)
    pipe.bake({"robot": 0.8})
    draw("baked", pipe, PROMPT)
    pipe.unbake()
    pipe.unload("robot")
    draw("ink", pipe, PROMPT)
    studio.detach(pipe)
    draw("detached", pipe, PROMPT)
