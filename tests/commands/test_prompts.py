"""The prompt language on the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from studio.cli import main
from studio.pipelines import read_metadata


def studio(*words: object, code: int = 0):
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "thing.txt").write_text("tiger\nrocket\n")
    return tmp_path / "words"


def generate(tiny_base, out, *words: object, code: int = 0):
    size = ("--resolution", 32, "--guidance", 1, "--json")
    return studio("generate", tiny_base, *words, "--steps", 2, "-o", out, *size, code=code)


def test_all_prompts_that_one_stands_for_are_drawn(tiny_base, tmp_path, folder):
    prompt = "a {red|blue} (__thing__:1.2) [at night:1]"
    made = json.loads(generate(tiny_base, tmp_path / "out", prompt, "--wildcards", folder, "--enumerate").stdout)
    wanted = [f"a {c} ({t}:1.2) [at night:1]" for c in ("red", "blue") for t in ("tiger", "rocket")]
    assert [one["prompt"] for one in made["pictures"]] == wanted
    assert [read_metadata(one["file"])["resolved"] for one in made["pictures"]] == wanted


def test_one_is_drawn_for_each_picture(tiny_base, tmp_path, folder):
    words = ("a __thing__ in {red|blue|green}", "--wildcards", folder, "--seeds", "0..5", "--batch-size", 2)
    made = json.loads(generate(tiny_base, tmp_path / "out", *words).stdout)["pictures"]
    said = [read_metadata(one["file"]) for one in made]
    assert {one["prompt"] for one in said} == {words[0]}
    assert len({one["resolved"] for one in said}) > 1
    (alone,) = json.loads(generate(tiny_base, tmp_path / "one", *words[:3], "--seeds", 4).stdout)["pictures"]
    assert read_metadata(alone["file"])["resolved"] == said[4]["resolved"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (tiger", r"nothing closes the '(' at character 3"),
        ("a {red|blue", r"nothing closes the '{' at character 3"),
        ("a __thing__", "no folder of such files is given"),
        ("[a:b:1.5]", "has the step 1.5"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tiny_base, tmp_path, prompt, words):
    result = generate(tiny_base, tmp_path / "out", "a tiger", prompt, code=2)
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*.png"))


def test_what_has_no_effect_is_said(tiny_base, tmp_path):
    result = studio("generate", tiny_base, "a AND b [c:30]", "--steps", 2, "--resolution", 32, "-o", tmp_path / "out")
    assert "note: AND in 'a AND b [c:30]' is drawn as a word" in result.stderr
    assert "changes at step 30 of 2, which never comes" in result.stderr
