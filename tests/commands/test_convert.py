"""``studio convert`` and ``studio resize`` on a file of the embedded base, which they find by the file's own word."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline


def studio_(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.stderr)
    return result


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=4, alpha=2, targets="attention"), name="robot")
    generator = torch.Generator().manual_seed(0)
    for tensor in studio.state(pipe.pipe, "robot").values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    return studio.save(pipe.pipe, folder / "robot.safetensors", name="robot", metadata={"base": "emoji"})


def test_to_kohya_and_back(file, tmp_path):
    said = json.loads(studio_("convert", file, "--for", "a1111", "-o", tmp_path / "k.safetensors", "--json").stdout)
    assert (said["format"], said["base"], said["error"]) == ("kohya", "emoji", 0)
    assert all(key.startswith("lora_") for key in load_file(tmp_path / "k.safetensors"))
    shown = studio_("convert", tmp_path / "k.safetensors", "--format", "diffusers", "-o", tmp_path / "d.safetensors")
    assert "from kohya to diffusers exactly" in shown.stdout
    before, after = load_file(file), load_file(tmp_path / "d.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_to_a_lower_rank(file, tmp_path):
    said = json.loads(studio_("resize", file, "--rank", 2, "-o", tmp_path / "r.safetensors", "--json").stdout)
    assert list(said["ranks"]) == ["2"] and list(said["before"]) == ["4"] and 0 < said["error"] < 1
    assert "leave out" in studio_("resize", file, "--sv-fro", 0.9, "-o", tmp_path / "s.safetensors").stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("convert",), "say to what"),
        (("convert", "--format", "kohya", "--for", "peft"), "say to what"),
        (("convert", "--format", "kohia"), "did you mean 'kohya'"),
        (("resize",), "resize to what"),
        (("resize", "--rank", 2, "--sv-fro", 3), "in (0, 1]"),
    ],
)
def test_what_is_refused_leaves_no_file(file, tmp_path, words, part):
    command, *rest = words
    assert part in studio_(command, file, *rest, "-o", tmp_path / "x.safetensors", code=2).stderr
    assert not (tmp_path / "x.safetensors").exists()
