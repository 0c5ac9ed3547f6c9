"""Classification as text: the likeliest of the answers that there are is what counts."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from studio.adapters import LoRA
from studio.cli import main
from studio.errors import BadFile
from studio.files import inspect
from studio.pipelines import TextPipeline
from studio.trainers import CausalLM, train
from studio.trainers.language.agreement import macro_f1
from studio.trainers.language.choices import choices_of
from studio.trainers.loop.plan import Plan

TWEETS = [{"prompt": f"my {thing} {state} Label : ", "completion": label}
          for state, label in (("broke", "complaint"), ("works", "no complaint"))
          for thing in ("phone", "train", "app", "shoe")]  # fmt: skip
KEPT = [{"prompt": "my bus broke Label : ", "completion": "complaint"},
        {"prompt": "my bus works Label : ", "completion": "no complaint"},
        {"prompt": "my hat works Label : ", "completion": "no complaint"}]  # fmt: skip


@pytest.fixture
def task(tiny_language, tmp_path):
    for name, entries in (("tweets", TWEETS), ("held-out", KEPT)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return CausalLM(base=tiny_language, data=tmp_path / "tweets.jsonl", held_out=tmp_path / "held-out.jsonl",
                    choices=True, answers=0, preview_prompts=())  # fmt: skip


def test_measures_are_those_of_the_likeliest_answers(task):
    lesson = task.open(LoRA(rank=2), Plan(), lambda line: None)
    assert lesson.choices == ("complaint", "no complaint")
    found = lesson.measure()
    pipe = TextPipeline.open(task.base)
    made = pipe.classify([entry["prompt"] for entry in KEPT], labels=lesson.choices, chat=False)
    said, right = [verdict.label for verdict in made], [entry["completion"] for entry in KEPT]
    assert found["accuracy"] == pytest.approx(sum(one == other for one, other in zip(said, right, strict=True)) / 3)
    assert found["macro_f1"] == pytest.approx(macro_f1(right, said)) and "exact_match" not in found


def test_it_learns_and_the_command_line_says_the_label(task, tmp_path):
    run = train(task, output=tmp_path / "run", steps=40, batch_size=8, learning_rate=2e-2, quiet=True)
    assert run.measures[40]["accuracy"] == 1.0 and run.measures[0]["accuracy"] < 1.0
    assert json.loads(inspect(run.adapter).facts["labels"]) == ["complaint", "no complaint"]
    words = ["complete", str(task.base), KEPT[1]["prompt"], "--adapter", str(run.folder), "--json"]
    result = CliRunner().invoke(main, words, prog_name="studio")
    (verdict,) = json.loads(result.stdout)["verdicts"]
    assert verdict["label"] == "no complaint" and set(verdict["scores"]) == {"complaint", "no complaint"}


@pytest.mark.parametrize("answers", [["yes"] * 3, [str(number) for number in range(65)]])
def test_answers_that_are_no_labels_are_refused(answers):
    with pytest.raises(BadFile) as caught:
        choices_of(answers, "x.jsonl")
    assert str(caught.value) == (
        f"choices=True: the answers of x.jsonl are the labels, and there are {len(set(answers))} different ones "
        f'("{answers[0]}", ...); it takes 2 to 64'
    )
