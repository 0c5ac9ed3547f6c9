"""Pictures of other programs, drawn here from what they say; and studio generate --from."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

import studio
from studio.cli import main
from studio.errors import BadFile
from studio.pipelines import ImagePipeline, read_metadata
from studio.pipelines.foreign.said import Said, SaidAdapter
from studio.pipelines.metadata import open_picture
from studio.pipelines.recalled import recall, recalled_as

TEXT = """a photo of (tiger:1.2), <lora:dog-v1:0.5> <lora:other:1>
Negative prompt: red
Steps: 2, Sampler: Euler a, CFG scale: 2, Seed: 11, Size: 72x64, Model: v1-5, Clip skip: 2"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An adapter's file, a picture of A1111's, one of ours, and one of ours with the adapter."""
    folder = tmp_path_factory.mktemp("recalled")
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=2), name="dog", components=["unet", "text_encoder"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in studio.state(pipe.pipe, "dog").values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    studio.save(pipe, folder / "dog-v1.safetensors", name="dog")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", TEXT)
    Image.new("RGB", (8, 8)).save(folder / "a1111.png", pnginfo=chunks)
    plain = ImagePipeline.open("emoji")
    plain.generate("rocket {on a red background|on a blue background}", seeds=4, steps=2, scheduler="heun")[0].save(
        folder / "ours.webp", lossless=True
    )
    plain.load(folder / "dog-v1.safetensors", name="dog")
    plain.generate("tiger <dog:0.7>", seeds=4, steps=2, batch_size=2, upscale=1.25)[0].save(folder / "with.png")
    return folder


def run(*words, code=0):
    result = CliRunner().invoke(main, ["generate", *map(str, words)], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def drawn(folder):
    return [open_picture(file) for file in sorted(folder.glob("[0-9]*.*"))]


def test_a_picture_of_ours_is_made_again_bit_for_bit(files, tmp_path):
    run("--from", files / "ours.webp", "-o", tmp_path / "a")
    (again,) = drawn(tmp_path / "a")
    first = open_picture(files / "ours.webp")
    assert again.convert("RGB").tobytes() == first.convert("RGB").tobytes()
    assert again.info["studio"] == first.info["studio"]
    run("--from", files / "with.png", "--adapter", files, "-o", tmp_path / "b")
    (again,) = drawn(tmp_path / "b")
    assert again.tobytes() == open_picture(files / "with.png").tobytes()
    assert again.info == open_picture(files / "with.png").info


def test_options_change_what_it_says_and_the_rest_stays(files, tmp_path):
    told = json.loads(
        run("--from", files / "ours.webp", "--seeds", "1,2", "--steps", 1, "-o", tmp_path, "--json").stdout
    )
    before = read_metadata(files / "ours.webp")
    for seed, entry in zip((1, 2), told["pictures"], strict=True):
        content = read_metadata(entry["file"])
        assert content == before | {"seed": seed, "steps": 1}
    run("--from", files / "ours.webp", "emoji", "owl", "--resolution", "72x64", "-o", tmp_path / "owl")
    content = read_metadata(tmp_path / "owl/0000.png")
    changed = {"prompt": "owl", "resolved": "owl", "width": 72}
    assert content == before | changed


def test_an_axis_starts_from_a_picture_too(files, tmp_path):
    words = ("--from", files / "with.png", "--adapter", files / "dog-v1.safetensors")
    run(*words, "--x", "strength:dog=0,0.7", "-o", tmp_path)
    first, second = drawn(tmp_path)
    assert second.tobytes() == open_picture(files / "with.png").tobytes() != first.tobytes()
    assert json.loads(open_picture(tmp_path / "grid.png").info["studio"])["kind"] == "sheet"


def test_a_picture_of_a1111_is_drawn_as_far_as_it_says(files, tmp_path):
    words = ("emoji", "--from", files / "a1111.png", "--adapter", files / "dog-v1.safetensors")
    result = run(*words, "-o", tmp_path)
    content = read_metadata(tmp_path / "0000.png")
    expected = {"seed": 11, "steps": 2, "guidance": 2.0, "width": 72, "height": 64, "negative": "red"}
    assert {key: content[key] for key in expected} == expected
    assert content["prompt"] == "a photo of (tiger:1.2), <lora:dog:0.5>"
    assert content["scheduler"]["class"] == "EulerAncestralDiscreteScheduler"
    assert [(use["name"], use["strength"]) for use in content["adapters"]] == [("dog", 0.5)]
    (note,) = [line for line in result.stderr.splitlines() if "A1111" in line]
    assert "not equal; not used: Clip skip: 2; <lora:other:1> (not given with --adapter)" in note


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ("--from", "a1111.png"),
            "the picture was drawn on 'v1-5'; say where such a one is: studio generate BASE --from",
        ),
        (("--from", "none.png"), "there is no picture"),
        (("--from", "plain.png"), "does not say how it was made (texts found: Title)"),
        (("--from", "with.png"), "the adapter 'dog' of the picture (dog-v1.safetensors, sha256"),
        (("--from", "ours.webp", "--steps", "0"), "--steps 0"),
        (("--from", "ours.webp", "--y", "seed=1"), "a grid begins with --x"),
        (("--from", "ours.webp", "--x", "sead=1"), "did you mean 'seed'"),
        (("--from", "ours.webp", "--matrix"), "has no parts to combine"),
        (("--from", "ours.webp", "--preview-every", "0"), "preview_every=0"),
        ((), "Missing argument 'BASE'"),
        (("emoji",), "Missing argument 'PROMPT...'"),
        (("emoji", "a", "b", "--x", "steps=1", "--y", "width=64", "--z", "seed=1"), "a grid has three axes"),
        (("emoji", "a|b", "--matrix", "--x", "steps=1"), "--matrix is of one prompt and one seed"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_leaves_nothing(files, tmp_path, words, part):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Title", "a dog")
    Image.new("RGB", (8, 8)).save(files / "plain.png", pnginfo=chunks)
    words = [files / word if "." in word else word for word in words]
    assert part in " ".join(run(*words, "-o", tmp_path / "out", code=2).stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def emoji(files):
    pipe = ImagePipeline.open("emoji")
    pipe.load(files / "dog-v1.safetensors", name="robot")
    return pipe


@pytest.mark.parametrize(
    ("said", "prompt", "unused"),
    [
        (Said(tool="x", prompt="a (dog", negative=""), r"a \(dog", ["brackets that are drawn as they stand: a (dog"]),
        (Said(tool="x", prompt="<lora:dog-v1:0.5:1> a"), "a <lora:robot:0.5:1>", []),
        (Said(tool="x", prompt="a <lora:robot:1> <lora:dog-v1:1>"), "a <lora:robot:1>", ["<lora:dog-v1:1>"]),
        (Said(tool="x", prompt="a <lora:dog-v1:x>"), "a", ["<lora:dog-v1:x>"]),
        (Said(tool="x", prompt="a <hypernet:y:1> <thing>"), r"a  \<thing\>", None),
        (
            Said(tool="x", prompt="a", adapters=(SaidAdapter("dog-v1", 0.8, 0.5), SaidAdapter("ink", 1, 1))),
            "a <lora:robot:0.5:0.8>",
            ["adapter ink: 1 (not given with --adapter)"],
        ),
    ],
)
def test_prompts_of_others_in_our_language(emoji, said, prompt, unused):
    wanted, left = recalled_as(emoji, said)
    assert " ".join(wanted.prompt.split()) == " ".join(prompt.split())
    assert unused is None or left == unused
    list(emoji.make([wanted.__class__(**{**vars(wanted), "steps": 1})]))


def test_numbers_that_this_base_does_not_take_are_left_and_named(emoji):
    numbers = {"embedded_guidance": 3.5, "upscale": 1.0, "upscale_steps": 0, "upscale_strength": 0.3, "seed": 1}
    wanted, unused = recalled_as(emoji, Said(tool="x", prompt="a", numbers=numbers))
    assert (wanted.seed, wanted.embedded_guidance, wanted.upscale, wanted.upscale_strength) == (1, None, None, None)
    assert set(unused) == {"embedded_guidance: 3.5", "upscale_strength: 0.3", "upscale: 1.0"}


def test_what_says_nothing_is_refused(tmp_path):
    with pytest.raises(BadFile, match=r"does not say how it was made \(texts found: none\): neither the studio nor"):
        recall(Image.new("RGB", (8, 8)))
    assert recall(ImagePipeline.open("emoji").generate("tiger", steps=1)[0]).base == "emoji"
