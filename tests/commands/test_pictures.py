"""What ``studio generate`` writes beside plain PNGs: other formats, previews, all variants of a prompt, grids."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from studio.cli import main
from studio.pipelines import read_metadata


def run(*words, code=0):
    result = CliRunner().invoke(main, ["generate", *map(str, words)], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))


@pytest.mark.parametrize(("word", "suffix", "kind"), [("jpeg", "jpg", "JPEG"), ("webp", "webp", "WEBP")])
def test_pictures_of_another_format_say_the_same_and_are_counted_with_the_others(tmp_path, word, suffix, kind):
    run("emoji", "tiger", "--steps", 1, "-o", tmp_path)
    run("emoji", "tiger", "--steps", 1, "-o", tmp_path, "--image-format", word)
    assert names(tmp_path) == ["0000.png", f"0001.{suffix}"]
    with Image.open(tmp_path / f"0001.{suffix}") as picture:
        assert picture.format == kind
    assert read_metadata(tmp_path / f"0001.{suffix}") == read_metadata(tmp_path / "0000.png")
    run("emoji", "tiger", "--steps", 1, "-o", tmp_path)
    assert names(tmp_path)[-1] == "0002.png"


def test_previews_are_written_while_it_draws(tmp_path):
    run("emoji", "tiger", "rocket", "--steps", 3, "--preview-every", 2, "--batch-size", 2, "-o", tmp_path)
    expected = [f"previews/000{picture}-0{number}.png" for picture in (0, 1) for number in (1, 2)]
    assert names(tmp_path) == ["0000.png", "0001.png", *expected]


def test_all_variants_are_drawn(tmp_path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/thing.txt").write_text("tiger\nrocket\n", encoding="utf-8")
    words = ("emoji", "__thing__ on a {red|blue} background", "--wildcards", tmp_path / "cards", "--steps", 1, "--json")
    told = json.loads(run(*words, "--enumerate", "-o", tmp_path / "all").stdout)
    prompts = [f"{thing} on a {colour} background" for thing in ("tiger", "rocket") for colour in ("red", "blue")]
    assert [entry["prompt"] for entry in told["pictures"]] == prompts
    run(*words, "-o", tmp_path / "one")
    assert read_metadata(tmp_path / "one/0000.png")["resolved"] in prompts


def test_a_grid_of_prompts_and_seeds_goes_where_it_is_free(tmp_path):
    words = ("emoji", "tiger", "rocket", "--seeds", "1,2", "--x", "steps=1,2", "-o", tmp_path)
    told = json.loads(run(*words, "--json").stdout)
    assert [(entry["prompt"], entry["seed"]) for entry in told["pictures"][::2]] == [
        ("tiger", 1), ("rocket", 1), ("tiger", 2), ("rocket", 2)
    ]  # fmt: skip
    assert [read_metadata(entry["file"])["steps"] for entry in told["pictures"]] == [1, 2] * 4
    run(*words)
    assert names(tmp_path) == [*(f"{number:04d}.png" for number in range(16)), "grid-1.png", "grid.png"]
    run(*words, "--overwrite", "--grid", tmp_path / "mine.png")
    assert len(names(tmp_path)) == 19
