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
from hypothesis import settings
from PIL import Image

torch.set_num_threads(1)
# the same examples each time, no clock (the machine may be busy), no folder of past examples
settings.register_profile("studio", derandomize=True, deadline=None, database=None)
settings.load_profile("studio")

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


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1 family with random weights, small enough for a training step in milliseconds.

    64 × 64 pictures, latents of 4 × 8 × 8, ε-prediction; the tokenizer is the embedded base's.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from studio.families import open_base

    tokenizer = open_base("emoji").pipe.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, projection_dim=16,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
        )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    pipe.save_pretrained(folder)
    return folder
