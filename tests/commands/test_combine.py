"""``studio combine`` on files of a tiny base."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline

PROMPT = "a photo of sks robot"


def studio_(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.stderr)
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    pipe = ImagePipeline.open("emoji")
    for seed, (name, rank) in enumerate((("robot", 4), ("ink", 6))):
        studio.attach(pipe.pipe, studio.LoRA(rank=rank, targets="attention"), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for tensor in studio.state(pipe.pipe, name).values():
            tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
        studio.save(pipe.pipe, folder / f"{name}.safetensors", name=name)
    return folder


@pytest.mark.parametrize("format", [None, "kohya"])
def test_one_file_draws_what_the_blend_draws(files, tmp_path, format):
    out = tmp_path / "both.safetensors"
    words = [f"{files / 'robot.safetensors'}:0.8", f"{files / 'ink.safetensors'}:-0.5", "--base", "emoji", "-o", out]
    said = json.loads(studio_("combine", *words, "--json", *(["--format", format] if format else [])).stdout)
    assert said["method"] == "lora" and list(said["ranks"]) == ["10"] and said["error"] == 0
    pipe = ImagePipeline.open("emoji")
    pipe.load(files / "robot.safetensors", name="robot")
    pipe.load(files / "ink.safetensors", name="ink")
    (blend,) = pipe.generate(PROMPT, blend={"robot": 0.8, "ink": -0.5}, steps=3)
    pipe.load(out, name="both")
    (both,) = pipe.generate(PROMPT, blend={"both": 1.0}, steps=3)
    apart = torch.tensor(list(blend.tobytes())).float() - torch.tensor(list(both.tobytes())).float()
    assert apart.abs().max() <= 1


def test_a_rank_is_asked_for_and_what_it_loses_is_said(files, tmp_path):
    words = (files / "robot.safetensors", files / "ink.safetensors", "--base", "emoji")
    result = studio_("combine", *words, "--rank", 3, "-o", tmp_path / "low.safetensors")
    assert "of rank 3" in result.stdout and "the rank leaves out" in result.stdout and "cosine of" in result.stdout
    downs = [tensor for key, tensor in load_file(tmp_path / "low.safetensors").items() if "lora_A" in key]
    assert downs and all(len(down) == 3 for down in downs)
    assert "is there already" in studio_("combine", *words, "-o", tmp_path / "low.safetensors", code=2).stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--method", "tise"), "did you mean 'ties'"),
        (("--density", "0.5"), "has no effect on exact"),
        (("--method", "ties", "--density", "7"), "density=7.0"),
        (("--rank", "0"), "rank=0"),
        (("--format", "kohia"), "did you mean 'kohya'"),
    ],
)
def test_what_is_refused_leaves_no_file(files, tmp_path, words, part):
    names = (files / "robot.safetensors", files / "ink.safetensors", "--base", "emoji")
    assert part in studio_("combine", *names, *words, "-o", tmp_path / "x.safetensors", code=2).stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_the_ways_are_listed():
    listed = studio_("combine", "--methods").stdout
    assert {line.split()[0] for line in listed.splitlines()} == set(studio.COMBINES)
