"""Classifiers through the one loop: loss, measures, the head and its file, resuming, what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from studio.adapters import METHODS, Full, LoRA, PromptTuning, adapters
from studio.adapters.contract.mixed import Mixed
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.files import inspect
from studio.pipelines import TextPipeline
from studio.trainers import Classify, train
from studio.trainers.language.labels import LabelLesson
from studio.trainers.loop.plan import Plan
from tiny import interrupted

PLACES = ("accra", "lima", "rome", "oslo")
TEXTS = [{"text": f"a {word} film in {place}", "label": label}
         for word, label in (("good", "pos"), ("bad", "neg")) for place in PLACES]  # fmt: skip
KEPT = [{"text": "a bad film", "label": "neg"}, {"text": "in lima a good film", "label": "pos"},
        {"text": "a film , good", "label": "pos"}]  # fmt: skip
WORDS = [{"tokens": ["a", "film", "in", place], "tags": ["O", "O", "O", "B-LOC"]} for place in PLACES] + [
    {"tokens": [place, "town", "is", "good"], "tags": ["B-LOC", "I-LOC", "O", "O"]} for place in PLACES
]  # fmt: skip
PAIRS = [{"premise": f"a {one} film", "hypothesis": f"a {two} film", "label": "same" if one == two else "other"}
         for one in ("good", "bad") for two in ("good", "bad")]  # fmt: skip


def write(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture
def task(tiny_encoder, tmp_path):
    return Classify(base=tiny_encoder, data=write(tmp_path / "films.jsonl", TEXTS),
                    held_out=write(tmp_path / "held-out.jsonl", KEPT))  # fmt: skip


@pytest.fixture
def settings():
    return {"steps": 6, "batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2, dropout=0.2)}


def opened(task, **plan):
    return task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)


def by_hand(base, rows):
    """−log p of every label of every row, in fp64, one row at a time, so nothing is padded."""
    model, found = base.model.double(), []
    for row in rows:
        reading = row.reading
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([reading.tokens]), token_type_ids=torch.tensor([reading.types])
            ).logits[0]  # fmt: skip
        logits = logits[list(reading.places)] if reading.places else logits[None]
        chances = F.log_softmax(logits, -1)
        found.append([-float(one[label]) for one, label in zip(chances, row.labels, strict=True)])
    base.model.float()
    return found


@pytest.mark.parametrize("entries", [TEXTS, PAIRS, WORDS], ids=["texts", "pairs", "words"])
def test_the_loss_is_the_mean_cross_entropy_of_a_sample(tiny_encoder, tmp_path, entries):
    lesson = opened(Classify(base=tiny_encoder, data=write(tmp_path / "data.jsonl", entries)))
    numbers = [0, 1, 2]
    rows = lesson.drawn(numbers)
    mean = sum(len(row.labels) for row in lesson.samples) / len(entries)
    wanted = sum(map(sum, by_hand(lesson.base, rows))) / (3 * mean)
    assert float(lesson.loss(numbers).total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert mean == (4 if entries is WORDS else 1)


def test_balanced_labels_weigh_the_same(tiny_encoder, tmp_path):
    """Three of one label and one of the other: weights 4 / (2 · 3) and 4 / (2 · 1)."""
    data = write(tmp_path / "data.jsonl", [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[5]])
    lesson = opened(Classify(base=tiny_encoder, data=data, balanced=True))
    assert lesson.base.labels == ("neg", "pos") and lesson.weights == [2.0, pytest.approx(2 / 3)]
    rows = lesson.drawn(range(4))
    losses = zip(rows, by_hand(lesson.base, rows), strict=True)
    wanted = sum(lesson.weights[row.labels[0]] * loss[0] for row, loss in losses) / 4
    assert float(lesson.loss(range(4)).total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_accumulation_is_the_larger_batch(task, settings, tmp_path):
    plain = {**settings, "adapter": LoRA(rank=2), "steps": 3}
    whole = train(task, output=tmp_path / "whole", **{**plain, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**plain, "batch_size": 2, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_measures_are_those_of_the_held_out_labels(task):
    lesson = opened(task)
    found, losses = lesson.measure(), by_hand(lesson.base, lesson.held_out)
    assert found["held_out_loss"] == pytest.approx(sum(map(sum, losses)) / 3, rel=1e-5)
    right = [loss[0] < math.log(2) for loss in losses]  # of two labels the right one is the likelier
    assert found["accuracy"] == pytest.approx(sum(right) / 3)
    assert set(found) == {"held_out_loss", "accuracy", "macro_f1"}


def test_a_killed_run_goes_on_bit_for_bit(task, settings, tmp_path):
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(LabelLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


@pytest.mark.parametrize(
    ("entries", "kept", "asked", "measure"),
    [
        (TEXTS, KEPT, ["a good film in rome", "a bad film"], "macro_f1"),
        (PAIRS, PAIRS, [("a good film", "a good film"), ("a bad film", "a good film")], "macro_f1"),
        (WORDS, WORDS, ["a film in oslo", "rome town is good"], "entity_f1"),
    ],
    ids=["texts", "pairs", "words"],
)
def test_it_learns_and_its_file_alone_says_what_it_is(tiny_encoder, tmp_path, entries, kept, asked, measure):
    data, held_out = write(tmp_path / "data.jsonl", entries), write(tmp_path / "held-out.jsonl", kept)
    task = Classify(base=tiny_encoder, data=data, held_out=held_out, name="films")
    run = train(task, output=tmp_path / "run", steps=60, batch_size=4, learning_rate=1e-2, quiet=True)
    before, after = run.measures[0], run.measures[60]
    assert after["held_out_loss"] < before["held_out_loss"] / 2 and after[measure] > before[measure]
    facts = inspect(run.adapter).facts
    kind, labels = facts["kind"], json.loads(facts["labels"])
    assert labels == sorted({one for entry in entries for one in entry.get("tags", [entry.get("label")])})
    pipe = TextPipeline.open(tiny_encoder, kind=kind, labels=labels)
    pipe.load(run.adapter)
    said = [verdict.label for verdict in pipe.classify(asked)]
    assert said == {"macro_f1": ["pos", "neg"] if entries is TEXTS else ["same", "other"]}.get(
        measure, ["O O O B-LOC", "B-LOC I-LOC O O"]
    )
    previews = [(run.folder / "previews" / f"step-000060-{i:02d}.txt").read_text() for i in range(3)]
    given = [tuple(e.values())[:2] if "premise" in e else e.get("text", e.get("tokens")) for e in kept[:3]]
    assert [verdict.line for verdict in pipe.classify(given)] == previews


def test_the_head_is_trained_and_saved_or_kept(task, settings, tmp_path):
    trained = train(task, output=tmp_path / "trained", **settings)
    found = inspect(trained.adapter)
    assert found.method == "lora+full" and "classifier" in found.sites
    alone = Classify(base=task.base, data=task.data, keep_head=True, preview_prompts=())
    kept = train(alone, output=tmp_path / "kept", **settings)
    assert inspect(kept.adapter).method == "lora" and inspect(kept.adapter).facts["labels"] == '["neg", "pos"]'


def test_training_on_from_a_file_begins_with_its_head(task, settings, tmp_path):
    first = train(task, output=tmp_path / "first", **settings)
    again = train(task, output=tmp_path / "again", **{**settings, "adapter": first.adapter, "steps": 3})
    assert again.measures[0] == pytest.approx(first.measures[6])
    assert inspect(again.adapter).method == "lora+full"
    other = write(tmp_path / "other.jsonl", [{**entry, "label": entry["label"][::-1]} for entry in TEXTS])
    with pytest.raises(DoesNotFit) as caught:
        train(Classify(base=task.base, data=other), output=tmp_path / "no", adapter=first.adapter, steps=1)
    assert str(caught.value) == (
        f"{first.adapter} tells neg, pos apart, and tiny-encoder was opened to tell gen, sop: open it with "
        "labels=('neg', 'pos')"
    )


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].adapter.kinds != ("model",)])
def test_every_method_that_changes_layers_trains_with_the_head(task, tmp_path, method):
    config = METHODS[method].example()
    run = train(task, output=tmp_path / "run", adapter=config, steps=2, batch_size=2, learning_rate=1e-2, quiet=True)
    pipe = TextPipeline.open(task.base, kind="classifier", labels=("neg", "pos"))
    pipe.load(run.adapter)
    previews = [(run.folder / "previews" / f"step-000002-{index:02d}.txt").read_text() for index in range(3)]
    assert [verdict.line for verdict in pipe.classify([entry["text"] for entry in KEPT])] == previews


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "bart", "roberta", "mistral"])
def test_decoders_and_pairs_of_encoder_and_decoder_classify(tiny_language, model):
    """A text has the same verdict whatever it is padded with, in every architecture."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from studio.pipelines.verdicts import judge
    from tiny import LANGUAGE_MODELS

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    _, config, sizes = LANGUAGE_MODELS[model]
    own = {**sizes, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id, "num_labels": 3}  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model, **own)).eval()
    base = open_language_base((made, tokenizer), kind="classifier")
    texts = [("What is it?<end>",), ("Paris.<end>",), ("What is the capital of France?<end>",)]
    together, alone = judge(base, texts, 3), [judge(base, [one], 1)[0] for one in texts]
    for one, other in zip(together, alone, strict=True):
        assert list(one.scores) == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert list(one.scores.values()) == pytest.approx(list(other.scores.values()), rel=1e-4)


def test_what_is_strange_is_told(task, tmp_path):
    data = write(tmp_path / "both.jsonl", [*TEXTS, {**TEXTS[0], "label": "neg"}])
    told = []
    Classify(base=task.base, data=data, held_out=task.held_out).open(LoRA(rank=2), Plan(), told.append)
    assert "1 texts stand there again with another label: line 1 'pos', line 9 'neg'" in told
    assert "the labels: neg, pos; tiny-encoder has no head for them, so one is made (classifier)" in told


def test_the_end_of_a_long_text_is_cut_off_and_told(tiny_encoder, tmp_path):
    long = {"tokens": ["film"] * 60, "tags": ["O"] * 60}
    told = []
    lesson = Classify(base=tiny_encoder, data=write(tmp_path / "data.jsonl", [*WORDS, long])).open(
        LoRA(rank=2), Plan(), told.append
    )
    assert lesson.samples[-1].size == 48 and lesson.samples[-1].counted == 47
    assert any(
        "1 of 9 samples of data.jsonl are longer than 48 tokens and lose their end: 14 tokens" in t for t in told
    )


@pytest.mark.parametrize(
    ("entries", "change", "error", "message"),
    [
        (TEXTS[:4], {}, BadFile, "every sample of DATA has the label 'pos': there is nothing to tell apart"),
        ([TEXTS[0], PAIRS[0]], {}, BadFile,
         "line 1 of DATA labels a text and line 2 a pair of texts: one classifier learns one of them"),
        (TEXTS, {"held_out": [{"text": "a film", "label": "soso"}]}, BadFile,
         "line 1 of what is held out has the label 'soso', which nothing that is trained on has (neg, pos): take it "
         "out, or give samples of it"),
        (TEXTS, {"adapter": PromptTuning(tokens=2)}, DoesNotFit,
         "prompttuning trains virtual tokens and no layer, and this task trains the head (classifier) too: take a "
         "method that changes layers"),
        (TEXTS, {"adapter": PromptTuning(tokens=2), "keep_head": True}, DoesNotFit,
         "prompttuning puts virtual tokens where a classifier looks for its answer: take a method that changes layers"),
        (PAIRS, {"preview_prompts": ("a film",)}, BadConfig,
         "preview_prompts are single texts, and pairs are judged here: leave them out"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(tiny_encoder, tmp_path, entries, change, error, message):
    data, change = write(tmp_path / "data.jsonl", entries), dict(change)
    adapter = change.pop("adapter", LoRA(rank=2))
    if "held_out" in change:
        change["held_out"] = write(tmp_path / "held-out.jsonl", change["held_out"])
    with pytest.raises(error) as caught:
        Classify(base=tiny_encoder, data=data, **change).open(adapter, Plan(), lambda line: None)
    assert str(caught.value) == message.replace("DATA", str(data))


def test_the_base_is_given_back(task, settings, tmp_path):
    base = open_language_base(task.base, kind="classifier", labels=("neg", "pos"))
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    train(Classify(base=base, data=task.data), output=tmp_path / "run", **settings)
    assert adapters(base.model) == {} and not base.model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in base.model.state_dict().items())


def test_a_quantised_base_keeps_its_head(tiny_encoder, tmp_path):
    pytest.importorskip("bitsandbytes")
    task = Classify(base=tiny_encoder, data=write(tmp_path / "data.jsonl", TEXTS), quantize="nf4")
    lesson = task.open(LoRA(rank=2), Plan(batch_size=2), lambda line: None)
    assert type(lesson.base.model.classifier) is torch.nn.Linear
    assert type(lesson.base.model.bert.encoder.layer[0].attention.self.query).__name__ == "Linear4bit"


@pytest.mark.parametrize(
    "config",
    [
        Full(),
        Full(targets=("*query",)),
        Mixed(parts=(LoRA(rank=2, targets=("*query",)), Full(targets=("*LayerNorm",)))),
    ],
    ids=["full", "full by patterns", "lora+full"],
)
def test_methods_like_that_of_the_head_are_trained_with_it_and_on_from_their_files(task, settings, tmp_path, config):
    first = train(task, output=tmp_path / "first", **{**settings, "adapter": config})
    kept = set(inspect(first.adapter).tensors)
    on = train(task, output=tmp_path / "on", **{**settings, "adapter": first.adapter})
    assert set(inspect(on.adapter).tensors) == kept
    assert any("query" in key for key in kept) and any("classifier" in key for key in kept)
