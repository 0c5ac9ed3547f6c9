"""What every task on texts keeps: a batch is the mean of its halves, a killed run goes on, processes agree."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import groups
from studio.adapters import LoRA, attach
from studio.families.language import sample_file
from studio.trainers import TEXT_TASKS, train
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import Lesson
from tiny import interrupted

FAMILIES = Path(__file__).parents[3] / "studio" / "families"


def lines(file: Path, most: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:most]]


def clips(most: int) -> list[dict[str, Any]]:
    folder = FAMILIES / "speech" / "train"
    return [
        {"audio": str(folder / one["file_name"]), "text": one["text"]} for one in lines(folder / "metadata.jsonl", most)
    ]


@dataclass(frozen=True)
class Case:
    """A small training of a task. base: an embedded base. data: its samples. settings: those it needs."""

    base: str
    data: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


def pictures(most: int) -> list[dict[str, Any]]:
    folder = FAMILIES / "figures" / "train"
    return [
        {"image": str(folder / one["file_name"]), "text": one["text"]} for one in lines(folder / "metadata.jsonl", most)
    ]


CODE = [{"code": f"value_{n} = {n} + {n}\nprint(value_{n})\n"} for n in range(8)]
MARKS = ("<P>", "<S>", "<M>")
CASES = {
    "caption": Case("figures", pictures(8)),
    "causal-lm": Case("facts", lines(sample_file("facts", "train.jsonl"), 8)),
    "classify": Case("facts", lines(sample_file("facts", "glosses.jsonl"), 12)),
    "code": Case("facts", CODE, {"marks": MARKS}),
    "embed": Case("facts", lines(sample_file("words", "train.jsonl"), 8)),
    "grpo": Case("facts", [{"prompt": f"Tell me about {what}."} for what in ("tin", "Oman", "cats", "red")],
                 {"reward": "length:1", "max_new_tokens": 4, "group": 2}),
    "preference": Case("facts", lines(sample_file("facts", "preferences.jsonl"), 8)),
    "reward": Case("facts", lines(sample_file("facts", "preferences.jsonl"), 8)),
    "seq2seq": Case("words", lines(sample_file("words", "train.jsonl"), 8)),
    "speech": Case("speech", clips(8)),
}  # fmt: skip


def task_of(name: str) -> Any:
    case = CASES[name]
    return TEXT_TASKS[name](base=case.base, data=case.data, name="x", **case.settings)


def test_every_task_has_a_case():
    assert set(CASES) == set(TEXT_TASKS)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_the_mean_of_its_halves(name):
    """So accumulation and several processes train what one does."""
    lesson = task_of(name).open(LoRA(rank=2, targets="attention"), Plan(batch_size=4), lambda line: None)
    lesson.prepare(lambda line: None)
    try:
        attach(lesson.model, lesson.attached, name=lesson.name)
        with torch.no_grad():
            whole, first, second = (
                float(lesson.loss(numbers).total) for numbers in (range(4), range(2), range(2, 4))
            )  # fmt: skip
        assert whole == pytest.approx((first + second) / 2, rel=1e-5, abs=1e-7)
    finally:
        lesson.close()


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_goes_on_byte_for_byte(name, tmp_path):
    settings = {"adapter": LoRA(rank=2, targets="attention", dropout=0.1), "steps": 3, "batch_size": 2, "quiet": True,
                "checkpoint_every": 1}  # fmt: skip
    train(task_of(name), output=tmp_path / "whole", **settings)
    with interrupted(Lesson, 2):
        train(task_of(name), output=tmp_path / "killed", **settings)
    run = train(task_of(name), output=tmp_path / "killed", **settings)
    assert run.adapter.read_bytes() == (tmp_path / "whole" / "adapter.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(name, tmp_path):
    case, data = CASES[name], tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in case.data))
    own = [word for key, value in case.settings.items() for word in ("--set", f"{key}={_toml(value)}")]
    for processes, folder in ((1, "one"), (2, "two")):
        words = ("-o", tmp_path / folder, "--steps", 4, "--batch-size", 4, "--rank", 2, "--learning-rate", 1e-3, *own)
        groups.studio("tune", name, case.base, data, *words, processes=processes)
    # on its own draws a policy's loss is near 0: what is left is the difference of much larger numbers
    groups.assert_same(tmp_path / "one", tmp_path / "two", floor=1e-3)


def _toml(value: Any) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)
