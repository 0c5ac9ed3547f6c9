"""A file written here makes the same picture where others load it: diffusers' own loader, on the embedded base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.families import open_base
from tiny import noise_for


def picture(pipe: Any) -> np.ndarray:
    noise = noise_for(pipe, 3)
    image = pipe("tiger on a blue background", latents=noise, num_inference_steps=6, guidance_scale=3.0).images[0]
    return np.asarray(image, dtype=int)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_diffusers_makes_the_same_picture(format: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ours, theirs = open_base("emoji").pipe, open_base("emoji").pipe
    base = picture(ours)
    config = studio.LoRA(rank=4, alpha=3.0, targets="attention")
    studio.attach(ours, config, name="cat", components=("unet", "text_encoder"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in studio.state(ours, "cat").values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    file = studio.save(ours, tmp_path / "cat.safetensors", name="cat", format=format)
    expected = picture(ours)
    assert np.abs(expected - base).max() > 30  # it does something
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    assert np.abs(picture(theirs) - expected).max() <= 1
