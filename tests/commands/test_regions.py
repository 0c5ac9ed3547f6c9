"""``studio generate --mask-of``: adapters in a part of the picture each, and pictures that are made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import studio
from studio.cli import main
from studio.errors import UnknownName
from studio.families import open_base
from studio.pipelines import read_metadata, regenerate

ASKED = ("a photo of sks robot", "--steps", "2", "--resolution", "128x64")


@pytest.fixture(scope="module")
def files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, dog and cat, and masks of halves."""
    folder, pipe = tmp_path_factory.mktemp("regions"), open_base(tiny_base).pipe
    for seed, name in enumerate(("dog", "cat")):
        studio.attach(pipe, studio.LoRA(rank=2), name=name, seed=seed)
        numbers = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in studio.state(pipe, name).values():
                tensor.add_(torch.randn(tensor.shape, generator=numbers) * 0.2)
        studio.save(pipe, folder / f"{name}.safetensors", name=name)
    left = Image.new("L", (256, 128), 0)
    left.paste(255, (0, 0, 128, 128))
    left.save(folder / "left.png")
    left.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "right.png")
    Image.new("L", (64, 64), 255).save(folder / "square.png")
    return folder


def run(base: Path, files: Path, *more: object, code: int = 0) -> Any:
    adapters = [word for name in ("dog", "cat") for word in ("--adapter", f"{files / name}.safetensors")]
    words = ["generate", base, *(ASKED if not more or str(more[0]).startswith("-") else ()), *more, *adapters]
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def test_each_acts_in_its_half_and_the_picture_is_made_again(tiny_base, files, tmp_path):
    masks = ("--mask-of", f"dog={files / 'left.png'}", "--mask-of", f"cat={files / 'right.png'}")
    told = json.loads(run(tiny_base, files, *masks, "--json", "-o", tmp_path / "masked").stdout)
    run(tiny_base, files, "-o", tmp_path / "plain")
    (made,) = told["pictures"]
    picture, plain = Image.open(made["file"]), Image.open(tmp_path / "plain/0000.png")
    assert picture.size == (128, 64) and picture.tobytes() != plain.tobytes()
    uses = {use["name"]: use["strength"] for use in read_metadata(made["file"])["adapters"]}
    assert all(len(use["mask"]) == 64 for use in uses.values()) and uses["dog"]["mask"] != uses["cat"]["mask"]
    given = {"base": tiny_base, "adapters": [files]}
    again = regenerate(made["file"], masks=[files / "right.png", files / "left.png"], **given)
    assert again.tobytes() == picture.tobytes()
    with pytest.raises(UnknownName, match="has a mask"):
        regenerate(made["file"], **given)


def refused(base: Path, files: Path, *more: object) -> str:
    lines = run(base, files, *more, code=2).stderr.splitlines()
    return next(line for line in lines if line.startswith("error: "))


def test_what_makes_no_region_is_refused(tiny_base, files):
    left = f"dog={files / 'left.png'}"
    assert "no adapter is named 'dgo'; did you mean 'dog'" in refused(
        tiny_base, files, "--mask-of", f"dgo={files / 'left.png'}"
    )
    assert "there is no mask" in refused(tiny_base, files, "--mask-of", f"dog={files / 'none.png'}")
    assert "twice" in refused(tiny_base, files, "--mask-of", left, "--mask-of", left)
    assert "NAME=FILE" in refused(tiny_base, files, "--mask-of", "left.png")
    assert "which is of another shape" in refused(tiny_base, files, "--mask-of", f"dog={files / 'square.png'}")
    assert "leave the tags out" in refused(tiny_base, files, "a robot <dog:0.5>", "--mask-of", left)
