"""``studio combine`` on files of a tiny base."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import studio
from studio.adapters import blended
from studio.cli import main
from studio.families.language import open_language_base
from studio.files import inspect
from studio.files.hashes import file_hash
from studio.pipelines import ImagePipeline
from tests.support.tiny import shaken

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
        studio.save(pipe.pipe, folder / f"{name}.safetensors", name=name, metadata={"base": "emoji"})
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
    lines = result.stdout.splitlines()  # what they do to each other stands before what is written
    assert lines[0].split() == ["block", "layers", "robot", "ink", "robot·ink", "together", "growth", "kept"]
    assert any(line.startswith("unet.mid_block ") for line in lines) and lines[-1].startswith("written: ")
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
        (("--family", "sdxl"), "leave out --base"),
        (("--method", "dare_linear", "--seed", str(2**70)), "from 0 to 2**63 - 1"),
    ],
)
def test_what_is_refused_leaves_no_file(files, tmp_path, words, part):
    names = (files / "robot.safetensors", files / "ink.safetensors", "--base", "emoji")
    assert part in studio_("combine", *names, *words, "-o", tmp_path / "x.safetensors", code=2).stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_learned_words_are_refused(files, tmp_path):
    word = studio.Embedding(name="cat", token="<cat>", vectors={"": torch.ones(2, 128)})
    file = studio.save_embedding(word, tmp_path / "cat.safetensors")
    for base in (("--base", "emoji"), ()):
        said = studio_("combine", files / "robot.safetensors", file, *base, "-o", tmp_path / "x.safetensors", code=2)
        assert "cat.safetensors holds learned words" in said.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_without_a_new_file_it_is_said_what_would_come_of_it(files):
    words = (files / "robot.safetensors", files / "ink.safetensors")
    said = json.loads(studio_("combine", *words, "--method", "orthogonal", "--json").stdout)
    assert said["file"] is None and said["left"]["robot"] == 1.0 and 0 < said["left"]["ink"] < 1
    assert said["suggestions"] and {"norms", "cosines", "kept"} <= set(said["conflict"]["blocks"][0])
    assert "nothing is written" in studio_("combine", *words).stdout


@pytest.mark.parametrize("blocks", ["OUTALL", "lbw=M00=0.5,*.attn2.*=0", "lbw=1,0,0,0,0,1"])
def test_blocks_are_weighed_as_on_the_base(files, tmp_path, blocks):
    """Presets, lists, blocks and globs: the file is the blend of ``block_weights``, and says so."""
    out = tmp_path / "both.safetensors"
    said = blocks.removeprefix("lbw=")
    pipe = ImagePipeline.open("emoji")
    robot, ink = (pipe.load(files / f"{name}.safetensors", name=name).name for name in ("robot", "ink"))
    if said.count(",") > 2:
        count = len(studio.block_weights(pipe.pipe, robot, "ALL")) and len(known_blocks(pipe))
        said = ",".join(str(round(0.1 * n, 1)) for n in range(count))
        blocks = f"lbw={said}"
    weights = studio.block_weights(pipe.pipe, robot, said)
    expected = studio.combine(pipe.pipe, {robot: studio.Strength(0.8, blocks=weights), ink: 0.5}, name="expected")
    studio_("combine", f"{files / 'robot.safetensors'}:0.8:{blocks}", f"{files / 'ink.safetensors'}:0.5", "-o", out)
    pipe.load(out, name="both")
    own, other = studio.state(pipe.pipe, "both"), studio.state(pipe.pipe, "expected")
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    told = json.loads(studio.adapters(pipe.pipe)["both"].metadata["combined"])
    assert told["parents"]["robot"]["blocks"] == weights and expected.sites
    assert told["parents"]["robot"]["file"] == "robot.safetensors" and inspect(out).facts["base"] == "emoji"
    assert told["parents"]["ink"]["file_sha256"] == file_hash(files / "ink.safetensors")


def test_generate_takes_blocks_too(files, tmp_path):
    words = ("generate", "emoji", PROMPT, "--steps", "2", "-o", tmp_path / "out", "--json")
    said = json.loads(studio_(*words, "--adapter", f"{files / 'robot.safetensors'}:0.8:OUTALL").stdout)
    assert said["adapters"][0]["strength"] == "0.8:lbw=OUTALL"
    pipe = ImagePipeline.open("emoji")
    pipe.load(files / "robot.safetensors", name="robot")
    blend = {"robot": studio.Strength(0.8, blocks=studio.block_weights(pipe.pipe, "robot", "OUTALL"))}
    (expected,) = pipe.generate(PROMPT, blend=blend, steps=2, seeds=[said["pictures"][0]["seed"]])
    drawn = Image.open(said["pictures"][0]["file"]).convert("RGB")
    assert drawn.tobytes() == expected.tobytes()


def known_blocks(pipe):
    from studio.adapters.targets.block_weights import Blocks
    from studio.families import FAMILIES, named_parts

    unet = pipe.pipe.unet
    modules = [path for path, _ in named_parts(unet) if path and "adapters" not in path.split(".")]
    paths = [path.removeprefix("unet.") for path in studio.adapters(pipe.pipe)["robot"].sites]
    return Blocks({"unet": paths}, modules, FAMILIES["sd1"]).known


def test_the_ways_are_listed():
    listed = studio_("combine", "--methods").stdout
    assert {line.split()[0] for line in listed.splitlines()} == set(studio.COMBINES)


def test_files_of_a_language_base_are_combined_on_it(tmp_path):
    """Those that do not say which base they are for need it named."""
    model = open_language_base("facts").model
    for seed, name in enumerate(("short", "polite")):
        studio.attach(model, studio.LoRA(rank=2, targets="attention"), name=name, seed=seed)
        studio.save(shaken(model, name), tmp_path / f"{name}.safetensors", name=name)
    out, tokens = tmp_path / "both.safetensors", torch.arange(8)[None]
    with blended(model, {"short": 0.5, "polite": 1.0}), torch.no_grad():
        wanted = model(input_ids=tokens).logits
    files = (f"{tmp_path / 'short.safetensors'}:0.5", tmp_path / "polite.safetensors")
    assert "name its base" in studio_("combine", *files, "-o", out, code=2).stderr
    studio_("combine", *files, "--base", "facts", "-o", out)
    studio.load(model, out, name="both", strength=0.0)
    with blended(model, {"both": 1.0}), torch.no_grad():
        assert (model(input_ids=tokens).logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()
