"""``studio tune`` and ``studio complete``: what they print, what they make, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from studio.cli import main
from studio.shown import shown as printable

ENTRIES = [
    {"instruction": f"Capital of {subject}?", "output": answer}
    for subject, answer in (("France", "Paris"), ("Mali", "Bamako"), ("Peru", "Lima"), ("Chad", "N'Djamena"))
]


def studio(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def refused(*words, code=2):
    result = studio(*words, code=code)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.stderr
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "capitals.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_language, data):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ("--steps", 3, "--batch-size", 2, "--rank", 2, "--held-out", data, "--json", "--quiet")
    return json.loads(studio("tune", "causal-lm", tiny_language, data, "-o", folder, *words).stdout)


def test_tune_trains_and_says_what_it_made(run, tiny_language, data):
    assert run["steps"] == 3 and not run["already"]
    assert set(run["before"]) == set(run["after"]) == {"held_out_loss", "exact_match"}
    again = studio("tune", "causal-lm", tiny_language, data, "-o", run["folder"], "--steps", 3, "--batch-size", 2,
                   "--rank", 2, "--held-out", data)  # fmt: skip
    assert "is finished" in again.stderr
    assert f"adapter: {run['adapter']}" in again.stdout
    assert "studio complete" in again.stdout and "Capital of France?" in again.stdout


def test_methods_that_sit_on_the_model_as_a_whole_need_no_targets(tiny_language, data, tmp_path):
    words = ("--method", "prefixtuning", "--set", "tokens=4", "--steps", 2, "--batch-size", 2, "--json", "-q")
    made = json.loads(studio("tune", "causal-lm", tiny_language, data, "-o", tmp_path / "run", *words).stdout)
    answered = studio("complete", tiny_language, "Capital of Mali?", "--adapter", made["adapter"], "--json")
    assert json.loads(answered.stdout)["adapters"][0]["method"] == "prefixtuning"
    assert "is negative" in refused("complete", tiny_language, "Hi", "--adapter", f"{made['adapter']}:-1")


def test_tune_takes_up_the_settings_of_a_run(run, tmp_path):
    made = studio("tune", "causal-lm", "-o", tmp_path / "run", "--config", f"{run['folder']}/run.toml", "--json", "-q")
    found = json.loads(made.stdout)
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == Path(run["adapter"]).read_bytes()
    assert found["after"] == run["after"]


def test_complete_prints_and_answers_in_json(run, tiny_language):
    shown = studio("complete", tiny_language, "Capital of Mali?", "--adapter", f"{run['adapter']}:0.5")
    made = studio("complete", tiny_language, "Capital of Mali?", "--adapter", f"{run['adapter']}:0.5", "--json")
    found = json.loads(made.stdout)
    (completion,) = found["completions"]
    assert shown.stdout.strip() == printable(completion["text"], lines=True).strip()
    assert completion["prompt"] == "Capital of Mali?" and completion["tokens"] <= 64
    assert found["adapters"][0]["method"] == "lora" and found["adapters"][0]["strength"] == 0.5


def test_complete_blends_per_prompt(run, tiny_language):
    words = ("--adapter", f"a={run['adapter']}:40", "--adapter", f"b={run['adapter']}:-40", "--max-new-tokens", 8)
    prompts = ("Capital of Mali?", "Capital of Mali?")
    paired = json.loads(studio("complete", tiny_language, *prompts, *words, "--per-sample", "--json").stdout)
    tagged = [f"{prompts[0]} <a:40>", f"{prompts[0]} <b:-40>"]
    by_tag = json.loads(studio("complete", tiny_language, *tagged, *words, "--json").stdout)
    assert paired["completions"] == by_tag["completions"]
    first, second = (completion["text"] for completion in paired["completions"])
    assert first != second
    both = studio("complete", tiny_language, *prompts, *words).stdout
    assert both.count("> Capital of Mali?\n") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", "causl", "BASE", "DATA"), "no task 'causl'; did you mean 'causal-lm'?"),
        (("tune", "causal-lm", "BASE", "-o", "OUT"), "studio tune causal-lm needs DATA"),
        (("tune", "causal-lm", "emoji", "DATA", "-o", "OUT"), "'emoji' draws pictures"),
        (("tune", "causal-lm", "fact", "DATA", "-o", "OUT"), "did you mean 'facts'?"),
        (("tune", "causal-lm", "BASE", "BAD", "-o", "OUT"), "line 2: the sample has no answer"),
        (("tune", "causal-lm", "BASE", "DATA", "-o", "OUT", "--method", "lorra"), "did you mean 'lora'?"),
        (("tune", "causal-lm", "BASE", "DATA", "-o", "OUT", "--set", "resolution=64"), "no setting 'resolution'"),
        (
            ("tune", "causal-lm", "BASE", "DATA", "-o", "OUT", "--targets", "q_porj"),
            "the target 'q_porj' matches no layer",
        ),
        (("tune", "causal-lm", "BASE", "DATA", "-o", "OUT", "--held-out", "1.5"), "a share lies between 0 and 1"),
        (("complete", "BASE", "Hi <dog>"), "the adapter 'dog', which is not loaded"),
        (("complete", "BASE", "Hi", "--per-sample"), "1 prompts and 0 adapters"),
        (("complete", "BASE", "Hi", "--adapter", "none.safetensors"), "none.safetensors"),
        (("complete", "emoji", "Hi"), "'emoji' draws pictures"),
    ],
)
def test_bad_requests_are_refused(words, message, tiny_language, data, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"prompt": "b"}\n')
    places = {"BASE": tiny_language, "DATA": data, "BAD": bad, "OUT": tmp_path / "out"}
    assert message in refused(*(places.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()


def test_a_picture_adapter_is_refused_by_a_language_base(tiny_language, tmp_path):
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "picture.safetensors"
    save_file({f"unet.mid.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, file)  # keys of another model
    assert "nothing in" in refused("complete", tiny_language, "Hi", "--adapter", file)
