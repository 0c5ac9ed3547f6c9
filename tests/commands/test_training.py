"""What the training commands share: --from, --continue, names, and what is refused before a base is opened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import studio as library
from studio.cli import main

SHORT = ("--steps", 2, "--batch-size", 1, "--rank", 2, "--set", "preview_prompts=[]")


def studio(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def refused(*words):
    result = studio(*words, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shots")
    for number, colour in enumerate(("red", "navy", "olive")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("STUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def command(tiny_base, shots):
    return ("dreambooth", tiny_base, shots, "--instance-prompt", "a photo of sks robot")


def facts_of(result):
    return json.loads(result.stdout)


def test_continue_trains_a_finished_run_on(command, tmp_path):
    first = facts_of(studio(*command, *SHORT, "-o", tmp_path / "run", "--json", "-q"))
    longer = (*command, *SHORT[2:], "--steps", 4, "-o", tmp_path / "run", "--json", "-q")
    assert "--continue with more steps trains on" in refused(*longer)
    more = facts_of(studio(*longer, "--continue"))
    assert (first["steps"], more["steps"], more["already"]) == (2, 4, False)
    assert facts_of(studio(*longer))["already"], "it is an ordinary run of four steps now"


def test_bar_report_and_result_tell_one_loss(command, tmp_path):
    said = studio(*command, "--steps", 12, "--batch-size", 1, "--rank", 2, "-o", tmp_path / "run", "--set",
                  "preview_prompts=[]")  # fmt: skip
    result = (tmp_path / "run" / "result.toml").read_text()
    (loss,) = [float(line.split("=")[1]) for line in result.splitlines() if line.startswith("loss =")]
    assert 'loss_is = "running mean over about 3 steps"' in result
    assert f"step 12/12 · {said.stderr.split('step 12/12 · ')[1].split(' · ')[0]} · mean loss {loss:.4f}" in said.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"<b>{loss:.4f}</b><span>loss at the end (running mean over about 3 steps)" in page
    assert "<h2>Use it</h2>" in page and f"--adapter {tmp_path}/run/adapter.safetensors" in page


def test_from_trains_on_from_a_file_or_a_run(command, tmp_path):
    first = facts_of(studio(*command, *SHORT, "-o", tmp_path / "first", "--json", "-q"))
    words = ("--steps", 1, "--batch-size", 1, "--set", "preview_prompts=[]", "--json", "-q")
    for given in (first["adapter"], first["folder"]):
        out = tmp_path / f"from-{Path(given).name}"
        made = facts_of(studio(*command, *words, "--from", given, "-o", out))
        assert library.inspect(made["adapter"]).rank == 2
        config = ("dreambooth", "-o", tmp_path / "again", "--config", out / "run.toml")
        assert "trained on from an adapter file: name it with --from" in refused(*config)
    message = refused(*command, *words, "--from", first["adapter"], "--rank", 8, "-o", tmp_path / "odd")
    assert "brings the adapter's settings with it: leave out rank" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("IMAGES=nowhere",), "nowhere"),
        (("--class-images", "nowhere", "--class-prompt", "a photo of robot"), "nowhere"),
        (("--rank", 0), "rank"),
        (("--method", "lorra"), "did you mean 'lora'"),
        (("--set", "alpha=loud"), "alpha must be"),
        (("--device", "cuba"), "cuba"),
        (("--from", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--preview", "a dog"), "lacks the trigger"),
        (("--learning-rate", "-1"), "learning_rate"),
        (("-o", "OCCUPIED"), "is no run"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_refused_before_a_base_is_opened(tiny_base, shots, tmp_path, monkeypatch, words, message):
    def opened(*given, **more):
        raise AssertionError("the base was opened")

    monkeypatch.setattr("studio.trainers.image_task.open_base", opened)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").touch()
    images = tmp_path / "nowhere" if words == ("IMAGES=nowhere",) else shots
    words = [str(word).replace("OCCUPIED", str(tmp_path / "occupied")) for word in words if "=nowhere" not in str(word)]
    out = () if "-o" in words else ("-o", tmp_path / "run")
    assert message in refused(
        "dreambooth", tiny_base, images, "--instance-prompt", "a photo of sks robot", *out, *words
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [("--held-out", "nowhere.jsonl"), ("--rank", 0), ("--held-out", "1e-9")])
def test_what_is_wrong_with_texts_is_refused_before_a_base_is_opened(tiny_language, tmp_path, monkeypatch, words):
    monkeypatch.setattr("studio.trainers.text_task.open_language_base", None)
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    refused("tune", "causal-lm", tiny_language, tmp_path / "data.jsonl", "-o", tmp_path / "run", *words)


def test_an_adapter_of_tune_has_the_name_of_its_run(tiny_language, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    words = ("tune", "causal-lm", tiny_language, tmp_path / "train.jsonl", "--steps", 1, "--rank", 2, "--json", "-q")
    made = facts_of(studio(*words, "-o", tmp_path / "capitals v2"))
    assert library.inspect(made["adapter"]).name == "capitals-v2"
    made = facts_of(studio(*words, "-o", tmp_path / "other", "--name", "mine"))
    assert library.inspect(made["adapter"]).name == "mine"
    taken_up = ("tune", "causal-lm", "--config", tmp_path / "other" / "run.toml", "-o", tmp_path / "third")
    made = facts_of(studio(*taken_up, "--json", "-q"))
    assert library.inspect(made["adapter"]).name == "third"


def test_a_link_to_itself_is_no_place_for_a_run(command, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert f"{tmp_path / 'loop'} is a link to" in refused(*command, "-o", tmp_path / "loop")


SLOW = """
import os, signal, sys, time
import studio.commands.doctor as command
from studio.cli import main

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

def slow(**given):
    try:
        print("ready", flush=True)
        if sys.argv[1] == "destroyed":
            Destroyed()
        time.sleep(60)
    finally:
        print("clearing up", flush=True)
        time.sleep(float(sys.argv[2]))
        if len(sys.argv) > 3:
            print("x" * 10_000, file=sys.stderr)  # to a terminal that may be gone
            open(sys.argv[3], "w").close()

command.doctor.callback = slow
main(["doctor"])
"""
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interruption_is_quiet(number):
    """The first one ends what goes on in order; the second comes while that is not over."""
    with subprocess.Popen([sys.executable, "-c", SLOW, "", "60"], **PIPES) as process:
        for line in ("ready\n", "clearing up\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == ""


def test_an_interruption_while_an_object_is_destroyed_is_not_lost():
    """Python can raise nothing there; it would print a traceback and go on."""
    with subprocess.Popen([sys.executable, "-c", SLOW, "destroyed", "0"], **PIPES) as process:
        assert process.wait(timeout=30) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("ready\nclearing up\n", "\ninterrupted\n")


def test_what_was_told_to_ignore_a_signal_ignores_it():
    """As ``nohup`` and ``&`` in a script do."""
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW
    with subprocess.Popen([sys.executable, "-c", ignoring, "", "0"], **PIPES) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_terminal_that_is_closed_ends_what_goes_on_in_order(tmp_path):
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", SLOW, "", "0", str(tmp_path / "cleared up")])
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert (tmp_path / "cleared up").exists()
