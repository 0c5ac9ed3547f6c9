"""Causal language models through the one loop: loss, measures, resuming, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from studio.adapters import IA3, METHODS, LoRA, adapters, attach, detach
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.files import inspect
from studio.trainers import CausalLM, train
from studio.trainers.language.causal import Causal
from studio.trainers.loop.plan import Plan

PAIRS = [("France", "Paris"), ("Mali", "Bamako"), ("Peru", "Lima"), ("Chad", "N'Djamena"), ("Fiji", "Suva")]
STEPS = 6


def lines(pairs):
    return [
        {"messages": [{"role": "user", "content": f"Capital of {s}?"}, {"role": "assistant", "content": a}]}
        for s, a in pairs
    ]


def write(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "capitals.jsonl", lines(PAIRS))


@pytest.fixture
def task(tiny_language, data, tmp_path):
    held_out = write(tmp_path / "held-out.jsonl", lines([("Oman", "Muscat"), ("Togo", "Lome")]))
    return CausalLM(base=tiny_language, data=data, held_out=held_out, preview_tokens=4)


@pytest.fixture
def settings():
    return {"steps": STEPS, "batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2, dropout=0.2)}


def opened(task, **plan):
    return task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)


def by_hand(base, rows):
    """Σ −log p over the learned tokens of each row, in fp64; one row at a time, so nothing is padded."""
    model, sums = base.model.double(), []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.tokens])).logits[0]
        places = [place for place in range(1, len(row.tokens)) if row.learned[place]]
        chances = F.log_softmax(logits, -1)
        sums.append(-sum(float(chances[place - 1, row.tokens[place]]) for place in places))
    base.model.float()
    return sums


def test_the_loss_is_the_sum_over_learned_tokens_by_their_mean_number(task):
    lesson = opened(task)
    numbers = [0, 1, 2]
    rows = [lesson.samples[lesson.draws.item(n, len(PAIRS))] for n in numbers]
    mean = sum(sum(row.learned) for row in lesson.samples) / len(PAIRS)
    wanted = sum(by_hand(lesson.base, rows)) / (3 * mean)
    assert float(lesson.loss(numbers).total.detach()) == pytest.approx(wanted, rel=1e-6)


def test_accumulation_is_the_larger_batch(task, settings, tmp_path):
    """Σ over B samples / (B m) does not depend on how the samples are dealt out to passes."""
    plain = {**settings, "adapter": LoRA(rank=2), "steps": 3}
    whole = train(task, output=tmp_path / "whole", **{**plain, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**plain, "batch_size": 2, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_measures_are_the_mean_loss_per_token_and_the_share_of_right_answers(task, data):
    lesson = opened(task)
    tokens = sum(sum(row.learned) for row in lesson.held_out)
    found = lesson.measure()
    assert found["held_out_loss"] == pytest.approx(sum(by_hand(lesson.base, lesson.held_out)) / tokens, rel=1e-6)
    assert found["exact_match"] == 0.0
    # what the base says of itself is right to the letter
    said = lesson._answers([(shown.text, shown.chat) for shown in lesson.previews], lesson.longest)
    assert len(said) == 2 and all(said)
    told = write(data.with_name("told.jsonl"), lines([("Oman", said[0]), ("Togo", "Lome")]))
    again = opened(CausalLM(base=task.base, data=data, held_out=told))
    asked = lesson.base.model.generate(
        **lesson.base.tokenizer(lesson.previews[0].text, return_tensors="pt", add_special_tokens=False),
        max_new_tokens=lesson.longest, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    ended = lesson.base.tokenizer.eos_token_id in asked[0].tolist()[-lesson.longest :]
    assert again.measure()["exact_match"] == (0.5 if ended or again.longest == lesson.longest else 0.0)


def test_a_run_measures_previews_and_reports(task, settings, tmp_path):
    run = train(task, output=tmp_path / "run", **{**settings, "preview_every": 3})
    assert sorted(run.measures) == [0, 3, 6]
    assert run.measures[6]["held_out_loss"] != run.measures[0]["held_out_loss"]
    texts = sorted(file.name for file in (run.folder / "previews").glob("*.txt"))
    assert texts == [f"step-{step:06d}-{index:02d}.txt" for step in (0, 3, 6) for index in (0, 1)]
    page = run.report.read_text()
    for shown in ("Capital of Oman? (wanted: Muscat)", "held out loss", "learned between", "⟦ ", "Held out"):
        assert shown in page
    facts = inspect(run.adapter).facts
    base = open_language_base(task.base)
    assert facts["tokenizer"] == base.tokenizer_hash and facts["base_hash"] == base.hash
    assert (facts["task"], facts["form"], facts["samples"], facts["base"]) == ("causal-lm", "chat", "5", base.id)
    again = train(task, output=tmp_path / "run", **{**settings, "preview_every": 3})
    assert again.already and again.measures == run.measures


class Killed(Exception):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("adapter", [LoRA(rank=2, dropout=0.2), IA3()], ids=lambda config: config.method)
def test_a_killed_run_goes_on_bit_for_bit(task, settings, tmp_path, monkeypatch, adapter):
    settings["adapter"] = adapter
    whole = train(task, output=tmp_path / "whole", **settings)

    def die(self, done):
        if done == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Causal, "after_step", die)
        with pytest.raises(Killed):
            train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_other_data_is_another_run(task, settings, tmp_path, data):
    train(task, output=tmp_path / "run", **settings)
    write(data, lines(PAIRS[::-1]))
    with pytest.raises(DoesNotFit, match="inputs.data was"):
        train(task, output=tmp_path / "run", **settings)


def test_the_base_is_given_back(task, settings, tmp_path):
    base = open_language_base(task.base)
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    given = CausalLM(base=base, data=task.data)
    train(given, output=tmp_path / "run", **{**settings, "gradient_checkpointing": True})
    assert adapters(base.model) == {}
    assert all(torch.equal(before[key], tensor) for key, tensor in base.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training and not base.model.is_gradient_checkpointing


def test_gradient_checkpointing_changes_no_gradient(task):
    found = []
    for checkpointing in (False, True):
        lesson = opened(task, gradient_checkpointing=checkpointing)
        lesson.prepare(lambda line: None)
        attach(lesson.model, LoRA(rank=2), seed=1)
        lesson.model.train()
        lesson.loss(range(2)).total.backward()
        found.append([p.grad.clone() for p in lesson.model.parameters() if p.grad is not None])
        detach(lesson.model)
        lesson.close()
    assert len(found[0]) == len(found[1]) > 0
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-7)


def test_what_is_cut_off_and_left_out_is_told(tiny_language, tmp_path):
    long = {"prompt": "a long question " * 8, "completion": " yes"}
    data = write(tmp_path / "data.jsonl", [*lines(PAIRS), long, {"text": "word " * 60, "id": 3}])
    told = []
    lesson = CausalLM(base=tiny_language, data=data, max_length=40).open(LoRA(rank=2), Plan(), told.append)
    assert len(lesson.samples) == 6
    assert any(
        f"left out of {data.name}: line 6: the whole answer lies behind the first 40 tokens" in line for line in told
    )
    lost = sum(row.lost for row in lesson.samples)
    assert lost > 0
    assert any(
        f"1 of 6 samples of {data.name} are longer than 40 tokens and lose their end: {lost} tokens" in t for t in told
    )
    assert any("the field 'id' of 1 lines" in line for line in told)
    assert [line for line in told if "learned between" in line and "Capital of France?" in line]
    assert set(told) & set(lesson.notes) >= {line for line in told if "left out" in line or "lose" in line}


def test_a_share_is_kept_whatever_the_order_is(tiny_language, tmp_path):
    entries = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(60)]
    sides = []
    for order in (entries, entries[::-1], entries + entries):
        data = write(tmp_path / "data.jsonl", order)
        lesson = opened(CausalLM(base=tiny_language, data=data, held_out=0.25))
        kept = {row.sample.digest for row in lesson.held_out}
        assert not kept & {row.sample.digest for row in lesson.samples}
        sides.append(kept)
    assert sides[0] == sides[1] == sides[2]
    assert 8 <= len(sides[0]) <= 24, "15 of 60 expected, within three standard deviations"


def test_held_out_samples_that_are_trained_on_are_told(task, data):
    told = []
    held_out = write(data.with_name("both.jsonl"), lines([PAIRS[0], ("Oman", "Muscat")]))
    CausalLM(base=task.base, data=data, held_out=held_out).open(LoRA(rank=2), Plan(), told.append)
    assert any(line.startswith("1 of the held-out samples are trained on as well") for line in told)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_length": 97}, DoesNotFit, "max_length=97: tiny-language reads 96 tokens"),
        ({"max_length": 1}, BadConfig, "max_length must be at least 2"),
        ({"held_out": 1.5}, BadConfig, "a share lies between 0 and 1"),
        ({"held_out": 0.000001}, BadConfig, "leaves one side without a sample"),
        ({"held_out": "none.jsonl"}, BadFile, "there is no file none.jsonl"),
        ({"held_out": []}, BadFile, "the held-out data has no sample"),
        ({"held_out": [{"text": ""}]}, BadFile, "held-out data, entry 1: text is empty"),
        ({"max_length": 6}, BadFile, "no sample of .* has a part of its answer within 6 tokens"),
        ({"name": "a b"}, BadConfig, "use letters"),
        ({"preview_prompts": ("say <end>",)}, DoesNotFit, "holds '<end>'"),
    ],
)
def test_bad_requests_are_refused(tiny_language, data, change, error, message):
    with pytest.raises(error, match=message):
        opened(CausalLM(**{"base": tiny_language, "data": data, **change}))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_and_is_loaded(task, tmp_path, method):
    """What is saved writes the texts that the last preview shows, so nothing is lost on the way."""
    from studio.pipelines.text import TextPipeline

    config = METHODS[method].example()
    run = train(task, output=tmp_path / "run", adapter=config, steps=3, batch_size=2, learning_rate=1e-2, quiet=True)
    pipe = TextPipeline.open(task.base)
    pipe.load(run.adapter)
    asked = [f"Capital of {name}?" for name in ("Oman", "Togo")]
    previews = [(run.folder / "previews" / f"step-000003-{index:02d}.txt").read_text() for index in (0, 1)]
    assert [made.text for made in pipe.complete(asked, max_new_tokens=task.preview_tokens)] == previews
    assert pipe.adapters["capitals"].metadata["form"] == "chat"


@pytest.mark.parametrize("method", ["prompttuning", "prefixtuning", "ptuning"])
def test_virtual_tokens_take_their_place_in_the_context(task, method):
    config = METHODS[method](tokens=60)
    lesson = task.open(config, Plan(), lambda line: None)
    assert lesson.settings["max_length"] == 96 - 60
    with pytest.raises(DoesNotFit, match="96 virtual tokens leave no room for text: tiny-language reads 96"):
        task.open(METHODS[method](tokens=96), Plan(), lambda line: None)
    longer = CausalLM(base=task.base, data=task.data, max_length=40)
    with pytest.raises(DoesNotFit, match="reads 96 tokens less 60 virtual ones; give at most 36"):
        longer.open(config, Plan(), lambda line: None)


def test_the_embedded_base_knows_and_learns_to_answer(tmp_path):
    """The base has read the facts and answers nothing; 40 steps of LoRA open them up on subjects no sample names."""
    from studio.families.language import sample_file

    task = CausalLM(
        base="facts", data=sample_file("facts", "train.jsonl"), held_out=sample_file("facts", "held-out.jsonl"),
        answers=60, preview_prompts=(),
    )  # fmt: skip
    run = train(task, output=tmp_path / "run", steps=40, quiet=True)
    before, after = run.measures[0], run.measures[40]
    assert before["exact_match"] == 0.0 and after["exact_match"] > 0.5
    assert after["held_out_loss"] < before["held_out_loss"] / 10
