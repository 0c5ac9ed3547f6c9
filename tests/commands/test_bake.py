"""``studio bake``: a whole model, opened and proven before it is kept."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline
from tests.support.tiny_pipelines import build

PROMPT = "a photo of sks robot"


def studio_(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.stderr)
    return result


def shaken(pipe, name, size=0.05):
    studio.attach(pipe.pipe, studio.LoRA(rank=4, alpha=2, targets="attention"), name=name)
    generator = torch.Generator().manual_seed(0)
    for tensor in studio.state(pipe.pipe, name).values():
        tensor.data += size * torch.randn(tensor.shape, generator=generator)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pipe = ImagePipeline.open("emoji")
    shaken(pipe, "robot")
    return studio.save(pipe.pipe, tmp_path_factory.mktemp("a") / "robot.safetensors", name="robot")


def test_the_folder_draws_what_the_blend_draws_without_an_adapter(file, tmp_path):
    said = json.loads(studio_("bake", "emoji", "--adapter", f"{file}:0.8", "-o", tmp_path / "m", "--json").stdout)
    assert said["difference"] <= 1 / 255
    base, made = ImagePipeline.open("emoji"), ImagePipeline.open(tmp_path / "m")
    base.load(file, name="robot")
    assert not made.adapters
    (blend,) = base.generate(PROMPT, blend={"robot": 0.8}, steps=3)
    (whole,) = made.generate(PROMPT, steps=3)
    (plain,) = base.generate(PROMPT, blend={}, steps=3)
    pixels = [torch.tensor(list(one.tobytes())).float() for one in (blend, whole, plain)]
    assert (pixels[0] - pixels[1]).abs().max() <= 1 and (pixels[0] - pixels[2]).abs().max() > 5
    assert "is there already" in studio_("bake", "emoji", "--adapter", file, "-o", tmp_path / "m", code=2).stderr


@pytest.mark.parametrize("kind", ["sdxl", "flux1", "z-image"])
def test_a_pipeline_of_another_family(kind, tmp_path):
    from studio.families import open_base
    from studio.pipelines.whole_model import write_whole_model

    pipe = ImagePipeline(open_base(build(kind)))
    shaken(pipe, "dog", 0.3)
    before = {
        key: tensor.clone() for key, tensor in pipe.pipe.components[pipe.base.family.denoiser].state_dict().items()
    }
    folder, apart = write_whole_model(pipe.base, tmp_path / kind, {"dog": 2.0})
    assert apart <= 1 / 255 and not any("adapters" in str(file) for file in folder.rglob("*"))
    after = pipe.pipe.components[pipe.base.family.denoiser].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_changes_nothing_is_no_model(file, tmp_path):
    assert "changes nothing" in studio_("bake", "emoji", "--adapter", f"{file}:0", "-o", tmp_path / "m", code=3).stderr
    assert "--adapter" in studio_("bake", "emoji", "-o", tmp_path / "m", code=2).stderr
    assert list(tmp_path.iterdir()) == []
