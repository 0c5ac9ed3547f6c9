"""Preference tuning through the one loop: losses by hand, the reference, accumulation, resuming, what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from studio.adapters import LoRA, attach, blended, detach
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.files import inspect
from studio.trainers import Preference, train
from studio.trainers.language.kto import KTOLesson
from studio.trainers.language.preference import PairwiseLesson
from studio.trainers.loop.plan import Plan
from tiny import interrupted, shaken

FACTS = [("Peru", "Lima"), ("Mali", "Bamako"), ("Chad", "N'Djamena"), ("Fiji", "Suva"), ("Cuba", "Havana")]
LOSSES = ("dpo", "ipo", "kto", "orpo")
SETTINGS = {"batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2), "learning_rate": 1e-2}


def pairs(facts=FACTS):
    return [
        {"prompt": [{"role": "user", "content": f"Capital of {s}?"}], "chosen": a, "rejected": f"I think it is {a}."}
        for s, a in facts
    ]


def verdicts(facts=FACTS):
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs(facts) for side in ("chosen", "rejected")
    ]  # fmt: skip


def write(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def task_of(loss, folder, base, **more):
    make = verdicts if loss == "kto" else pairs
    data = write(folder / "data.jsonl", make())
    held_out = write(folder / "held-out.jsonl", make([("Oman", "Muscat"), ("Togo", "Lome"), ("Laos", "Vientiane")]))
    return Preference(base=base, data=data, held_out=held_out, loss=loss, preview_tokens=2, **more)


@pytest.fixture(params=LOSSES)
def task(request, tiny_language, tmp_path):
    return task_of(request.param, tmp_path, tiny_language)


def opened(task, **plan):
    """A lesson whose adapter is attached and has moved."""
    lesson = task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)
    lesson.prepare(lambda line: None)
    attach(lesson.model, LoRA(rank=2), name=lesson.name, seed=0)
    return lesson


def by_hand(lesson, row):
    """(Σ log π, Σ log ρ, tokens) of an answer in fp64, alone, so that nothing is padded."""
    model, found = lesson.model.double(), []
    for wanted in ({lesson.name: 1.0}, {}):
        with torch.no_grad(), blended(model, wanted):
            chances = F.log_softmax(model(input_ids=torch.tensor([row.tokens])).logits[0], -1)
        places = [place for place in range(1, len(row.tokens)) if row.learned[place]]
        found.append(sum(float(chances[place - 1, row.tokens[place]]) for place in places))
    lesson.model.float()
    return (*found, len(places))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loss_by_hand(lesson, task, rows, others):
    """The mean loss of rows in Python's own floats."""
    if task.loss == "kto":
        z = max(0.0, sum(own - bare for own, bare, _ in (by_hand(lesson, row) for row in others)) / len(others))
        ratios = [own - bare for own, bare, _ in (by_hand(lesson, row.answer) for row in rows)]
        signs = [1 if row.sample.good else -1 for row in rows]
        return sum(1 - sigmoid(task.beta * s * (h - z)) for h, s in zip(ratios, signs, strict=True)) / len(rows)
    found = []
    for row in rows:
        (c, c0, n), (r, r0, m) = by_hand(lesson, row.chosen), by_hand(lesson, row.rejected)
        if task.loss == "dpo":
            found.append(-math.log(sigmoid(task.beta * ((c - c0) - (r - r0)))))
        elif task.loss == "ipo":
            found.append(((c - c0) / n - (r - r0) / m - 1 / (2 * task.beta)) ** 2)
        else:
            odds = [math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in (c / n, r / m)]
            found.append(-c / n - task.beta * math.log(sigmoid(odds[0] - odds[1])))
    return sum(found) / len(found)


def test_the_loss_is_the_papers(task):
    lesson = opened(task)
    shaken(lesson.model, lesson.name)
    numbers = [0, 1]
    items = [lesson.draws.item(n, len(lesson.samples)) for n in numbers]
    others = [lesson._others[item] for item in items] if task.loss == "kto" else []
    wanted = loss_by_hand(lesson, task, [lesson.samples[item] for item in items], others)
    assert float(lesson.loss(numbers).total.detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto"])
def test_before_the_first_step_the_model_is_its_reference(loss, tiny_language, tmp_path):
    task = task_of(loss, tmp_path, tiny_language)
    lesson = opened(task)
    start = {"dpo": math.log(2), "ipo": (1 / (2 * task.beta)) ** 2, "kto": 0.5}[loss]
    assert float(lesson.loss([0, 1]).total.detach()) == pytest.approx(start, rel=1e-5)
    found = lesson.measure()
    # the same batches through the same kernels: nothing but a sum of zeros
    assert found["kl"] == found["margin"] == 0.0
    assert found["held_out_loss"] == pytest.approx(start, rel=1e-7)
    if loss != "kto":
        assert found["accuracy"] == 0.5


def test_the_answers_alone_count_each_with_its_end(tiny_language, tmp_path):
    lesson = task_of("dpo", tmp_path, tiny_language).open(LoRA(rank=2), Plan(), lambda line: None)
    row = lesson.samples[0]
    for side, text in ((row.chosen, "Lima<end>"), (row.rejected, "I think it is Lima.<end>")):
        told = [token for token, counts in zip(side.tokens, side.learned, strict=True) if counts]
        assert lesson.base.tokenizer.decode(told).strip() == text


def test_accumulation_is_the_larger_batch(task, tmp_path):
    plain = {**SETTINGS, "steps": 3}
    whole = train(task, output=tmp_path / "whole", **{**plain, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**plain, "batch_size": 2, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(task, tmp_path):
    settings = {**SETTINGS, "steps": 4, "adapter": LoRA(rank=2, dropout=0.2)}
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(KTOLesson if task.loss == "kto" else PairwiseLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_short_answers_are_learned_to_be_preferred(task, tmp_path):
    run = train(task, output=tmp_path / "run", **{**SETTINGS, "steps": 30, "checkpoint_every": 0, "batch_size": 4})
    before, after = run.measures[0], run.measures[30]
    assert after["held_out_loss"] < before["held_out_loss"]
    assert after["margin"] > before["margin"] and after["accuracy"] >= max(before["accuracy"], 0.9)
    assert before["kl"] == 0.0 < after["kl"]
    facts = inspect(run.adapter).facts
    assert (facts["task"], facts["form"], facts["loss"]) == ("preference", "chat", task.loss)


def test_the_bases_own_dropout_is_off_and_comes_back(tmp_path, tiny_language):
    """A base with dropout would differ from its reference by chance."""
    from studio.families.language import open_language_base

    base = open_language_base(tiny_language)
    for layer in base.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    lesson = opened(task_of("dpo", tmp_path, base))
    lesson.model.train()
    assert float(lesson.loss([0, 1]).total.detach()) == pytest.approx(math.log(2), rel=1e-5)
    detach(lesson.model, lesson.name)
    lesson.close()
    assert [layer.self_attn.attention_dropout for layer in base.model.model.layers] == [0.5, 0.5]


@pytest.mark.parametrize(("loss", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_trl_trains_with_the_same_losses(tiny_language, tmp_path, loss, loss_type):
    """TRL's DPOTrainer on a model adapted here: the same pairs in each step, the same losses (1e-4)."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    plain = [{"prompt": f"The capital of {s} is", "chosen": f" {a}", "rejected": f" maybe {a}."} for s, a in FACTS[:4]]
    task = Preference(base=tiny_language, data=write(tmp_path / "plain.jsonl", plain), loss=loss, beta=1.0)
    own = train(
        task, output=tmp_path / "run", adapter=LoRA(rank=2), steps=4, batch_size=4, learning_rate=2e-2, warmup=0,
        schedule="constant", weight_decay=0.0, beta2=0.999, quiet=True,
    )  # fmt: skip
    lesson = opened(task)
    trainer = DPOTrainer(
        lesson.model, processing_class=lesson.base.tokenizer, train_dataset=Dataset.from_list(plain),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), loss_type=loss_type, beta=1.0, per_device_train_batch_size=4, max_steps=4,
            learning_rate=2e-2, lr_scheduler_type="constant", weight_decay=0.0, logging_steps=1, save_strategy="no",
            precompute_ref_log_probs=True, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
            disable_tqdm=True, max_grad_norm=1.0,
        ),
    )  # fmt: skip
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert own.losses == pytest.approx(theirs, abs=1e-4)
    assert own.losses[-1] < own.losses[0] - 0.01, "something was learned"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": 0.0}, BadConfig, "beta=0.0: beta must be above 0"),
        ({"beta": float("inf")}, BadConfig, "beta=inf: beta must be above 0"),
        ({"beta": float("nan")}, BadConfig, "beta=nan: beta must be above 0"),
        ({"desirable": 2.0}, BadConfig, "desirable and undesirable are weights of loss='kto', and the loss is 'dpo'"),
        ({"loss": "dpp"}, BadConfig, "loss"),
        ({"preview_prompts": ("say <end>",)}, DoesNotFit, "^the user's turn holds '<end>'"),
        ({"max_length": 6}, BadFile, "no sample of data.jsonl has a part of its answer within 6 tokens"),
        ({"loss": "kto"}, BadFile, "line 1: it has two answers, and loss='kto' learns from single ones with a label"),
    ],
)
def test_bad_requests_are_refused(tiny_language, tmp_path, change, error, message):
    data = write(tmp_path / "data.jsonl", pairs())
    with pytest.raises(error, match=message):
        Preference(**{"base": tiny_language, "data": data, **change}).open(LoRA(rank=2), Plan(), print)


def test_labels_of_one_side_are_refused(tiny_language, tmp_path):
    data = write(tmp_path / "data.jsonl", [entry for entry in verdicts() if entry["label"]])
    with pytest.raises(BadFile, match="^all 5 labels of data are true: KTO weighs good answers against others; give"):
        Preference(base=tiny_language, data=data, loss="kto").open(LoRA(rank=2), Plan(), print)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_forecast_is_of_the_longest_answer(loss, tiny_language, tmp_path):
    """And not of both of a pair together."""
    lesson = task_of(loss, tmp_path, tiny_language).open(LoRA(rank=2), Plan(), lambda line: None)
    answers = [one for row in lesson.samples for one in ([row.answer] if loss == "kto" else [row.chosen, row.rejected])]
    assert lesson.foresee().sizes["length"] == max(one.size for one in answers)
