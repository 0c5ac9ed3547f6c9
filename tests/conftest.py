"""Fixtures that several test files share, and the settings under which every test runs."""

from __future__ import annotations

import importlib.util
import os
import sys

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

import tiny

torch.set_num_threads(1)
# the same examples each time, no clock (the machine may be busy), no folder of past examples
settings.register_profile("studio", derandomize=True, deadline=None, database=None)
settings.load_profile("studio")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="module")
def example(root):
    """Returns a function that imports a script of ``examples/`` by its name; it is forgotten after the module."""
    before = set(sys.modules)
    sys.path.insert(0, str(root / "examples"))  # as Python does for a script: scripts import their neighbours

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, root / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(root / "examples"))
    neighbours = {file.stem for file in (root / "examples").glob("*.py")} - before
    for name in neighbours & set(sys.modules):
        del sys.modules[name]


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


@pytest.fixture(params=[True, False], ids=["a cpu with bf16", "a cpu without"])
def cpu_has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What the hardware answers; the choices are ours."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN, which is what is asked")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    return request.param


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1 family with random weights."""
    return tiny.write_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a Llama with random weights and a chat template."""
    return tiny.write_language_base(tmp_path_factory.mktemp("bases") / "tiny-language")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a BERT with random weights and without a head."""
    return tiny.write_encoder_base(tmp_path_factory.mktemp("bases") / "tiny-encoder")


@pytest.fixture(scope="session")
def tiny_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a Whisper with random weights that hears half a second."""
    return tiny.write_speech_base(tmp_path_factory.mktemp("bases") / "tiny-speech")


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a LLaVA with random weights that sees 16 x 16 pixels."""
    return tiny.write_vision_base(tmp_path_factory.mktemp("bases") / "tiny-vision")


@pytest.fixture
def dreambooth(tiny_base, photos):
    """A subject to learn from five pictures, without class images or previews."""
    from studio.trainers import DreamBooth

    return DreamBooth(
        base=tiny_base, instance_images=photos, instance_prompt="a photo of sks robot", prior="none", preview_prompts=()
    )
