"""``studio render``: what it prints, its exit codes, and what it leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import studio as library
from studio.cli import main
from studio.pipelines import ImagePipeline, read_metadata

LIST = """base: emoji
defaults: {steps: 1}
jobs:
- prompt: tiger
  seeds: 0..1
- prompt: rocket
"""


def studio(*words, code=0):
    """Runs the command line in this process and checks the exit code."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def act(model, name):
    library.attach(model, library.LoRA(rank=2), name=name)
    with torch.no_grad():
        for key, tensor in library.state(model, name).items():
            if key.endswith(".up"):
                tensor.fill_(0.01)


@pytest.fixture
def jobs(tmp_path):
    file = tmp_path / "jobs.yaml"
    file.write_text(LIST)
    return file


def test_a_list_is_drawn_and_the_second_call_says_that_it_was(jobs, tmp_path):
    first = studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu")
    assert first.stdout.startswith("3 pictures: ") and first.stderr == ""
    second = studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu")
    assert "3 pictures, 3 of them there already" in second.stdout
    said = json.loads(studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu", "--json").stdout)
    assert (said["drawn"], said["found"], said["failures"]) == (0, 3, [])
    assert [read_metadata(file)["prompt"] for file in said["pictures"]] == ["tiger", "tiger", "rocket"]
    assert studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu", "--quiet").stdout == ""


def test_some_that_are_not_done_are_exit_code_3_with_line_and_field(jobs, tmp_path):
    jobs.write_text(f"{LIST}- prompt: fox\n  stesp: 3\n- prompt: owl\n  width: 65\n")
    result = studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu", code=3)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: 2 of 5 jobs are not done: jobs.yaml line 7: no job has the field 'stesp'; did you")
    assert "manifest.jsonl tells each" in last and "note: " in result.stderr and "width=65" in result.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    said = json.loads(studio("render", jobs, "-o", tmp_path / "out", "--device", "cpu", "--json", code=3).stdout)
    assert [one["index"] for one in said["failures"]] == [3, 4] and said["found"] == 3


@pytest.mark.parametrize(("words", "says"), [
    (["gone.yaml"], "there is no list of jobs"), (["{jobs}", "--name", "x"], "two jobs"),
    (["{jobs}", "--name", "{seed}{sede}"], "did you mean 'seed'"), (["{jobs}", "--batch-size", 0], "batch_size=0"),
    (["{jobs}", "--engine", "ry"], "did you mean 'ray'"), (["{jobs}", "--name", "../{index}"], "leads out"),
    (["{jobs}", "--adapter", "a=x", "--adapter", "a=y"], "two adapters"),
])  # fmt: skip
def test_what_cannot_begin_is_exit_code_2(jobs, tmp_path, words, says):
    words = [jobs if word == "{jobs}" else word for word in words]
    result = studio("render", *words, "-o", tmp_path / "out", code=2)
    assert says in result.stderr and result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_missing_extra_is_named(jobs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = studio("render", jobs, "-o", tmp_path / "out", "--engine", "ray", "--device", "cpu", code=2)
    assert "need ray" in result.stderr and "pip install" in result.stderr


def test_adapters_of_the_command_line_act_under_the_name_that_they_record(tmp_path):
    pipe = ImagePipeline.open("emoji")
    act(pipe.pipe, "ink")
    library.save(pipe.pipe, tmp_path / "a.safetensors", name="ink")
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("prompt,steps\ntiger,1\ntiger <ink:0.25>,1\n")
    words = ["--adapter", f"{tmp_path / 'a.safetensors'}:0.5", "--base", "emoji", "--device", "cpu"]
    studio("render", jobs, "-o", tmp_path / "out", *words)
    made = [read_metadata(tmp_path / "out" / f"0000{number}.png")["adapters"][0] for number in (0, 1)]
    assert [(use["name"], use["strength"]) for use in made] == [("ink", 0.5), ("ink", 0.25)]
    words[1] += ":lbw=OUTALL"
    studio("render", jobs, "-o", tmp_path / "weighed", *words)
    image = Image.open(tmp_path / "weighed" / "00000.png").convert("RGB")
    pipe = ImagePipeline.open("emoji")
    pipe.load(tmp_path / "a.safetensors")
    blend = {"ink": library.Strength(0.5, blocks=library.block_weights(pipe.pipe, "ink", "OUTALL"))}
    (wanted,) = pipe.generate("tiger", steps=1, blend=blend, seeds=[0])
    assert image.tobytes() == wanted.tobytes()


def test_learned_words_of_the_command_line_are_read_and_have_no_strength(tmp_path):
    save_file({"emb_params": torch.randn(2, 128)}, tmp_path / "zorb.safetensors")
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("prompt,steps\na zorb,1\n")
    words = ["--adapter", tmp_path / "zorb.safetensors", "--base", "emoji", "--device", "cpu"]
    studio("render", jobs, "-o", tmp_path / "out", *words)
    (use,) = read_metadata(tmp_path / "out" / "00000.png")["embeddings"]
    assert use["name"] == "zorb" and use["file"] == "zorb.safetensors"
    words[1] = f"{words[1]}:0.5"
    result = studio("render", jobs, "-o", tmp_path / "half", *words, code=3)
    assert "'zorb' is learned words, which have no strength" in result.stderr


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path):
    file, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"prompt": "tiger", "seed": seed, "steps": 10}) + "\n" for seed in range(24)))
    words = [sys.executable, "-m", "studio", "render", str(file), "--base", "emoji", "-o", str(out), "--device", "cpu"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.endswith("interrupted\n") and "Traceback" not in said
    assert "of 24 jobs are done; the same command goes on from there" in said
    there = len(list(out.glob("*.png")))
    assert 3 <= there < 24
    again = json.loads(subprocess.run([*words, "--json"], capture_output=True, text=True, check=True).stdout)
    assert (again["found"], again["drawn"]) == (there, 24 - there)
