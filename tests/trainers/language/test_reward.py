"""Reward models through the one loop: the loss by hand, the head, resuming, what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch

from studio.adapters import LoRA, attach
from studio.errors import DoesNotFit
from studio.families.language.heads import cosine_rows
from studio.pipelines.text import TextPipeline
from studio.trainers import Reward, train
from studio.trainers.language.reward import RewardLesson
from studio.trainers.loop.plan import Plan
from tiny import interrupted, shaken

FACTS = [("Peru", "Lima"), ("Mali", "Bamako"), ("Chad", "N'Djamena"), ("Fiji", "Suva"), ("Cuba", "Havana")]
HELD_OUT = [("Oman", "Muscat"), ("Togo", "Lome"), ("Laos", "Vientiane")]
SETTINGS = {"batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2), "learning_rate": 1e-2}


def write(file, facts):
    entries = [
        {"prompt": [{"role": "user", "content": f"Capital of {s}?"}], "chosen": a, "rejected": f"I think it is {a}."}
        for s, a in facts
    ]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture
def task(tiny_language, tmp_path):
    held_out = write(tmp_path / "held-out.jsonl", HELD_OUT)
    return Reward(base=tiny_language, data=write(tmp_path / "data.jsonl", FACTS), held_out=held_out)


def test_the_loss_is_that_of_bradley_and_terry(task):
    lesson = task.open(LoRA(rank=2), Plan(batch_size=2), lambda line: None)
    attach(lesson.model, lesson.attached, name=lesson.name, seed=0)
    shaken(lesson.model, lesson.name)
    model, wanted = lesson.model, []
    for row in lesson.drawn([0, 1, 2]):
        with torch.no_grad():  # alone, so that nothing is padded, and through the layers themselves
            better, worse = (
                float(model.double().score(model.model(input_ids=torch.tensor([one.tokens])).last_hidden_state[0, -1]))
                for one in (row.chosen, row.rejected)
            )
        wanted.append(math.log(1 + math.exp(worse - better)))
    model.float()
    assert float(lesson.loss([0, 1, 2]).total.detach()) == pytest.approx(sum(wanted) / 3, rel=1e-5)


def test_the_head_is_made_trained_and_saved(task, tmp_path):
    run = train(task, output=tmp_path / "run", **{**SETTINGS, "steps": 30, "checkpoint_every": 0, "batch_size": 4})
    before, after = run.measures[0], run.measures[30]
    assert after["held_out_loss"] < before["held_out_loss"] < 2 and after["margin"] > before["margin"]
    assert after["accuracy"] == 1.0, "short answers are the better ones"
    pipe = TextPipeline.open(task.base, kind="classifier", labels=("reward",))
    assert torch.equal(pipe.model.score.weight, cosine_rows(1, 32, pipe.model.config.initializer_range))
    pipe.load(run.adapter)
    asked = [(f"Capital of {s}?", text) for s, a in HELD_OUT for text in (a, f"I think it is {a}.")]
    made = pipe.classify(asked)
    rewards = [one.scores["reward"] for one in made]
    margins = [good - bad for good, bad in zip(rewards[::2], rewards[1::2], strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(after["margin"], abs=1e-5) and min(margins) > 0
    assert made[0].line == f"reward ({rewards[0]:.2f})", "the logit itself: a softmax of one label is always 1"


def test_accumulation_is_the_larger_batch(task, tmp_path):
    plain = {**SETTINGS, "steps": 3}
    whole = train(task, output=tmp_path / "whole", **{**plain, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**plain, "batch_size": 2, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(task, tmp_path):
    settings = {**SETTINGS, "steps": 4, "adapter": LoRA(rank=2, dropout=0.2)}
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(RewardLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_virtual_tokens_are_refused(task):
    from studio.adapters import METHODS

    with pytest.raises(
        DoesNotFit, match="^prompttuning trains virtual tokens and no layer, and this task trains the h"
    ):
        task.open(METHODS["prompttuning"](tokens=4), Plan(), print)
