"""What the tests of several processes train on."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.support.tiny_pipelines import build


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_base, tiny_language):
    """A UNet, an MMDiT and a small language model, pictures and texts."""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "unet").symlink_to(tiny_base)
    (folder / "llama").symlink_to(tiny_language)
    build("flux1").save_pretrained(folder / "mmdit")
    (folder / "photos").mkdir()
    for number in range(5):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(number)).numpy()
        Image.fromarray(pixels.astype("uint8")).save(folder / "photos" / f"{number}.png")
    lines = [{"prompt": f"What is {n} and {n}?", "completion": f" It is {2 * n}."} for n in range(12)]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder
