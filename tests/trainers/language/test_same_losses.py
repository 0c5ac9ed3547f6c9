"""The same run by our loop and by others' trainers: the same samples in the same order give the same losses.

Answers are all of one length, so that the mean over the tokens of a batch, which transformers takes, is the mean over
the data set, which the loop takes. Nothing drops out, the rate is constant, AdamW has the same settings.
"""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

import studio
from studio.adapters import LoRA
from studio.families.language import open_language_base
from studio.trainers import CausalLM, Preference, Seq2Seq, train
from studio.trainers.loop.plan import Plan
from tiny import t5

STEPS, BATCH, RATE, DECAY = 5, 4, 1e-2, 1e-2
ADAPTER = LoRA(rank=3, alpha=6, targets="attention")
PLACES = ("Accra", "Lima", "Rome", "Oslo in the north", "Cairo", "Quito", "Dakar", "a city by the sea", "Bonn")
WORDS = ["".join(letters) for letters in itertools.permutations("QZXK", 3)]  # letters of which no two are one token
ASKED = [(f"What is {place}?", word) for place, word in zip(PLACES, WORDS, strict=False)]
LOOP: dict[str, Any] = {
    "steps": STEPS, "batch_size": BATCH, "learning_rate": RATE, "schedule": "constant", "warmup": 0, "beta2": 0.999,
    "weight_decay": DECAY, "adapter": ADAPTER, "quiet": True, "checkpoint_every": 0,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": RATE, "lr_scheduler_type": "constant",
    "weight_decay": DECAY, "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
    "save_strategy": "no", "logging_strategy": "no", "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_folder_is_taken_for_hugging_faces_package(monkeypatch):
    """The tests run beside our folder datasets/, in which transformers sees a package where none is installed."""
    found = importlib.util.find_spec("datasets")
    if found is None or found.origin is None:
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)


def rows_of(task) -> list[Any]:
    """The rows of all steps, in the order in which the loop draws them."""
    lesson = task.open(ADAPTER, Plan(batch_size=BATCH, steps=STEPS), lambda line: None)
    assert len({row.counted for row in lesson.samples}) == 1 or task.task_name == "preference"
    return lesson.drawn(range(STEPS * BATCH))


def recorded(cls: type, *given: Any, **more: Any) -> list[float]:
    """The losses of a trainer of transformers that takes its data in order."""
    losses: list[float] = []

    class InOrder(cls):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    InOrder(*given, **more).train()
    return losses


def padded(rows: list[dict[str, list[int]]], fill: dict[str, int]) -> dict[str, torch.Tensor]:
    longest = {name: max(len(row[name]) for row in rows) for name in fill}
    return {
        name: torch.tensor([row[name] + [value] * (longest[name] - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def by_trainer(model, data, fill, folder) -> list[float]:
    from transformers import Trainer, TrainingArguments

    studio.attach(model, ADAPTER, seed=0)
    arguments = TrainingArguments(output_dir=str(folder), **THEIRS)
    return recorded(Trainer, model, arguments, train_dataset=data, data_collator=lambda rows: padded(rows, fill))


def test_answers_are_those_of_transformers_trainer(tiny_language, tmp_path):
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in ASKED]
    task = CausalLM(base=tiny_language, data=chats)
    data = [
        {"input_ids": list(row.tokens), "attention_mask": [1] * row.size,
         "labels": [token if learned else -100 for token, learned in zip(row.tokens, row.learned, strict=True)]}
        for row in rows_of(task)
    ]  # fmt: skip
    base = open_language_base(tiny_language)
    fill = {"input_ids": base.pad, "attention_mask": 0, "labels": -100}
    ours = train(task, output=tmp_path / "run", **LOOP).losses
    assert ours == pytest.approx(by_trainer(base.model, data, fill, tmp_path / "theirs"), abs=1e-5)
    assert ours[-1] < ours[0] - 0.1


def test_pairs_are_those_of_transformers_trainer(tiny_language, tmp_path):
    tokenizer = open_language_base(tiny_language).tokenizer
    sizes = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }

    def model():
        return t5(**sizes, dropout_rate=0.0)

    task = Seq2Seq(base=(model(), tokenizer), data=[{"source": q, "target": a} for q, a in ASKED])
    data = [
        {"input_ids": list(row.read), "attention_mask": [1] * len(row.read), "labels": list(row.said)}
        for row in rows_of(task)
    ]
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
    ours = train(task, output=tmp_path / "run", **LOOP).losses
    assert ours == pytest.approx(by_trainer(model(), data, fill, tmp_path / "theirs"), abs=1e-5)
    assert ours[-1] < ours[0] - 0.1


@pytest.mark.filterwarnings("ignore")
def test_preferences_are_those_of_trl(tiny_language, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    pairs = [
        {"prompt": [{"role": "user", "content": q}], "chosen": a, "rejected": f"I think that it is {a}."}
        for q, a in ASKED
    ]
    task = Preference(base=tiny_language, data=pairs, beta=0.2)
    drawn = [pairs[row.sample.line - 1] for row in rows_of(task)]
    turns = [
        {"prompt": pair["prompt"],
         **{side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")}}
        for pair in drawn
    ]  # fmt: skip
    base = open_language_base(tiny_language)
    studio.attach(base.model, ADAPTER, seed=0)
    arguments = trl.DPOConfig(output_dir=str(tmp_path / "theirs"), beta=0.2, precompute_ref_log_probs=True, **THEIRS)
    theirs = recorded(
        trl.DPOTrainer, base.model, args=arguments, train_dataset=Dataset.from_list(turns),
        processing_class=base.tokenizer,
    )  # fmt: skip
    ours = train(task, output=tmp_path / "run", **LOOP).losses
    assert ours[0] == pytest.approx(0.6931472, abs=1e-6)
    assert ours == pytest.approx(theirs, abs=1e-4) and ours[-1] < ours[0] - 0.05
