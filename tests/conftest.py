"""Fixtures that several test files share, and the settings under which every test runs."""

from __future__ import annotations

import os

# before torch is imported anywhere: one thread per process (the tests run in several), no network
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def picture():
    """Returns a maker of pictures that are all different: ``picture(seed, (width, height), mode)``."""

    def make(seed: int = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
        draw = numpy.random.default_rng(seed)
        # large patches, so that the pictures survive scaling and JPEG
        patches = draw.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
        return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).convert(mode)

    return make


@pytest.fixture
def photos(tmp_path: Path, picture) -> Path:
    """A clean folder of five pictures of 64 x 64 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        picture(number, (64, 64)).save(folder / f"photo{number}.png")
    return folder
