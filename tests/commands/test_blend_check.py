"""``studio blend-check``: its table, its JSON, its picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline, TextPipeline, read_metadata
from tiny import write_language_base


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def write_adapters(carrier: object, folder: Path) -> tuple[Path, Path]:
    """Two adapters, the second much like the first."""
    for name in ("dog", "ink"):
        studio.attach(carrier, studio.LoRA(rank=2, init="gaussian"), name=name)
        for number, tensor in enumerate(studio.state(carrier, name).values()):
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    for number, tensor in enumerate(studio.state(carrier, "ink").values()):
        tensor.data += 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(900 + number))
    return tuple(studio.save(carrier, folder / f"{name}.safetensors", name=name) for name in ("dog", "ink"))


@pytest.fixture(scope="module")
def files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_adapters(ImagePipeline.open(tiny_base).pipe, tmp_path_factory.mktemp("adapters"))


def test_the_table_says_what_burns_where(tiny_base, files):
    result = run("blend-check", tiny_base, "--adapter", files[0], "--adapter", f"{files[1]}:0.9")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["block", "layers", "dog", "ink", "dog·ink", "together", "growth", "kept"]
    assert any(line.startswith("unet.mid_block ") for line in lines) and any(line.startswith("all ") for line in lines)
    assert "dog and ink add up: together they move the weights 1.8" in result.stdout


def test_json_and_the_picture(tiny_base, files, tmp_path):
    place = tmp_path / "map.png"
    words = (
        "blend-check",
        tiny_base,
        "--adapter",
        files[0],
        "--adapter",
        f"{files[1]}:-1",
        "--picture",
        place,
        "--json",
    )
    told = json.loads(run(*words).stdout)
    assert told["strengths"] == {"dog": 1.0, "ink": -1.0} and told["picture"] == str(place)
    assert told["whole"]["cosines"] == [["dog", "ink", pytest.approx(-0.9, abs=0.08)]]
    assert "undo each other" in told["advice"][0] and len(told["blocks"]) > 2
    assert {block["place"] for block in told["blocks"]} >= {"unet.mid_block"}
    with Image.open(place) as picture:
        assert picture.width >= 640 and len(picture.getcolors(1 << 20)) > 20


def test_every_layer_with_sites(tiny_base, files):
    words = ("blend-check", tiny_base, "--adapter", files[0], "--adapter", files[1])
    blocks, sites = run(*words).stdout.splitlines(), run(*words, "--sites").stdout.splitlines()
    assert len(sites) > len(blocks) and any("to_q" in line for line in sites)


def test_a_language_base(tmp_path):
    base = write_language_base(tmp_path / "language")
    dog, ink = write_adapters(TextPipeline.open(base).carrier, tmp_path)
    told = json.loads(run("blend-check", base, "--adapter", dog, "--adapter", ink, "--json").stdout)
    assert told["whole"]["growth"] > 1.7
    assert "--config-of is for" in run("blend-check", base, "--adapter", dog, "--config-of", "x", code=2).stderr


def test_what_is_refused(tiny_base, files):
    assert "no adapter of the blend acts" in run("blend-check", tiny_base, code=3).stderr
    assert "no adapter of the blend acts" in run("blend-check", tiny_base, "--adapter", f"{files[0]}:0", code=3).stderr
    assert "there is no" in run("blend-check", tiny_base, "--adapter", "nowhere.safetensors", code=2).stderr


def test_generate_notes_what_burns_unless_it_is_normalized(tiny_base, files, tmp_path):
    words = ("generate", tiny_base, "a dog", "--adapter", files[0], "--adapter", files[1], "--steps", 8, "-o")
    result = run(*words, tmp_path / "raw")
    assert result.stderr.count("dog and ink add up") == 1
    result = run(*words, tmp_path / "held", "--normalize")
    assert "add up" not in result.stderr
    told = read_metadata(tmp_path / "held" / "0000.png")
    assert all(use["strength"]["blocks"] for use in told["adapters"])
    told = json.loads(run("blend-check", tiny_base, *words[3:7], "--normalize", "--json").stdout)
    assert told["whole"]["growth"] == pytest.approx(1.0, abs=1e-3)
