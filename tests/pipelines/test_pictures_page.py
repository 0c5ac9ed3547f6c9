"""The page of pictures: its commands and its Python run as they stand, and the sheets that it shows are there."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import studio
from studio.cli import main
from studio.pipelines import AXES, ImagePipeline
from studio.pipelines.metadata import open_picture


@pytest.fixture(scope="module")
def text(root):
    return (root / "docs" / "pictures.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a run of the page's adapter in it."""
    monkeypatch.chdir(tmp_path)
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=2), name="robot")
    with torch.no_grad():
        for tensor in studio.state(pipe.pipe, "robot").values():
            tensor.add_(0.01)
    studio.save(pipe, tmp_path / "runs/robot/adapter.safetensors", name="robot")
    (tmp_path / "runs/robot/run.toml").touch()
    return tmp_path


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [code for spoken, code in found if spoken == language]


def test_every_line_runs_and_draws_what_it_says(text, folder):
    commands = [line for block in blocks(text, "") for line in block.splitlines()]
    assert len(commands) >= 6
    for command in commands:
        short = () if "--from" in command and "--steps" not in command else ("--steps", "1")
        result = CliRunner().invoke(main, [*shlex.split(command)[1:], *short], prog_name="studio")
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    made = {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}
    assert {"out/0005.png", "out/grid.png", "matrix/0003.png", "matrix/grid.png", "like-it/0002.png"} <= made
    assert open_picture("larger/0000.png").size == (96, 96)
    assert open_picture("again/0000.png").tobytes() == open_picture("first/0000.webp").convert("RGB").tobytes()


def test_the_python_of_the_page_runs(text, folder):
    for code in blocks(text, "python"):
        exec(compile(code.replace("steps=8", "steps=2"), "pictures.md", "exec"), {})  # noqa: S102
    assert {"grid.png", "rocket.png", "previews.png"} <= {file.name for file in folder.iterdir()}


def test_its_table_has_every_axis_and_its_pictures_are_there(text, root):
    table = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert {name for name in AXES if not re.search(rf"`{name}[:=]", table)} == set()
    shown = re.findall(r"!\[[^\]]+\]\(([\w.-]+)\)", text)
    assert len(shown) >= 3
    for name in shown:
        with Image.open(root / "docs" / name) as picture:
            assert picture.width >= 400 and (root / "docs" / name).stat().st_size < 400_000
