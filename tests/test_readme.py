"""What README and the pages show can be copied: each line runs, in order, in one folder, and does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import studio.pipelines
import studio.trainers
from studio.cli import main
from studio.limits import LIMITS
from studio.trainers.loop.preview import read_measures

SHORT = {"dreambooth": ("--steps", "2"), "tune": ("--steps", "2"), "generate": ("--steps", "2"), "doctor": ("--fast",)}
TASK_PAGES = sorted(file for file in (Path(__file__).parents[1] / "docs" / "tasks").glob("*.md"))
RISING = {"exact_match", "accuracy", "macro_f1", "margin", "reward"}  # what is better when it is larger
RISING |= {"recall_at_1", "reciprocal_rank"}
ELSEWHERE = {"make", "pip"}  # what sets the studio up has been done where this runs


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in order; what stands behind their three ticks tells the language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [code for spoken, code in found if spoken == language]


def words_of(block: str) -> list[list[str]]:
    """The commands of a block, without comments; a stray explanation would be a command that is not there."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


@pytest.fixture
def folder(root, tmp_path, monkeypatch):
    """A folder as a checkout has it, for paths such as ``studio/families/facts/train.jsonl``."""
    (tmp_path / "studio").symlink_to(root / "studio")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(words: list[str], *, short: bool) -> None:
    more = next((more for name, more in SHORT.items() if name in words[1:3]), ()) if short else ()
    result = CliRunner().invoke(main, [*words[1:], *more], prog_name="studio")
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.stderr}\n{result.exception!r}"


def follow(text: str, folder, monkeypatch, *, short: bool) -> None:
    for block in blocks(text, ""):
        for words in words_of(block):
            assert words[0] in {"studio", *ELSEWHERE}, f"README shows {shlex.join(words)!r}, which is no command"
            if words[0] == "studio":
                run(words, short=short)
    if short:
        train = studio.trainers.train
        monkeypatch.setattr(studio.trainers, "train", lambda task, **more: train(task, steps=2, **more))
    for code in blocks(text, "python"):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102


def what_came(folder) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}


def test_readme_can_be_copied(root, folder, monkeypatch):
    follow((root / "README.md").read_text(encoding="utf-8"), folder, monkeypatch, short=True)
    came = what_came(folder)
    assert {"photos/01.png", "photos/06.png", "robot.png", "mine.safetensors"} <= came
    assert {f"out/000{number}.png" for number in range(4)} <= came
    assert {"runs/robot/adapter.safetensors", "runs/answers/adapter.safetensors"} <= came
    assert studio.pipelines.read_metadata("robot.png")["adapters"][0]["name"] == "robot"


@pytest.mark.parametrize("page", TASK_PAGES, ids=lambda page: page.stem)
def test_the_page_of_a_task_can_be_copied(page, folder, monkeypatch):
    follow(page.read_text(encoding="utf-8"), folder, monkeypatch, short=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", TASK_PAGES, ids=lambda page: page.stem)
def test_the_page_of_a_task_does_what_it_says(page, folder, monkeypatch):
    """What it is measured by is better after than before, of every training that the page shows."""
    follow(page.read_text(encoding="utf-8"), folder, monkeypatch, short=False)
    runs = sorted(folder.glob("runs/*/log.jsonl"))
    assert runs
    for log in runs:
        measured = read_measures(log.parent)
        first, last = measured[min(measured)], measured[max(measured)]
        better = [last[name] > first[name] if name in RISING else last[name] < first[name] for name in first]
        assert any(better), f"{page.stem}: {first} before, {last} after"


def test_every_task_has_a_page():
    assert {page.stem for page in TASK_PAGES} >= set(studio.trainers.TEXT_TASKS)


@pytest.mark.slow
def test_readme_does_what_it_says(root, folder, monkeypatch):
    from PIL import Image

    from studio import fidelity

    follow((root / "README.md").read_text(encoding="utf-8"), folder, monkeypatch, short=False)
    with Image.open("robot.png") as picture:
        assert fidelity.rank(picture.convert("RGB"), "robot", "pink") <= 3
        assert fidelity.prompt_fidelity(picture.convert("RGB"), "pink")


def test_the_page_of_limits_is_the_table(root):
    text = (root / "docs" / "limits.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {row.most:,} | {row.of} |" for name, row in LIMITS.items()]
    assert [line for line in text.splitlines() if line.startswith("| `")] == rows
