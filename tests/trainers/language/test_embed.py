"""Sentence embeddings through the one loop: the loss by hand, what is told apart, measures, resuming, refusals."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from click.testing import CliRunner
from transformers import T5Model

from studio.adapters import LoRA, PromptTuning, attach
from studio.cli import main
from studio.datasets.sentences import SentencePair
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.pipelines import TextPipeline
from studio.trainers import Embed, train
from studio.trainers.language.embed import EmbedLesson, encode_sentences, ranks_of, told_apart
from studio.trainers.loop.plan import Plan
from tiny import interrupted, shaken, t5

PLACES = ("accra", "lima", "rome", "oslo", "cairo", "quito", "dakar")
PAIRS = [{"anchor": f"a good film in {place}", "positive": f"{place} is bad"} for place in PLACES]
FAR = [{**pair, "negative": "a film is a film"} if place in ("lima", "oslo") else pair
       for place, pair in zip(PLACES, PAIRS, strict=True)]  # fmt: skip
KEPT = [{"anchor": f"a good film in {place}", "positive": f"{place} is bad"} for place in ("bonn", "minsk", "paris")]


def write(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture
def task(tiny_encoder, tmp_path):
    return Embed(base=tiny_encoder, data=write(tmp_path / "films.jsonl", FAR),
                 held_out=write(tmp_path / "held-out.jsonl", KEPT), group=4)  # fmt: skip


@pytest.fixture
def settings():
    return {"steps": 6, "batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2, dropout=0.2)}


def opened(task, **plan):
    lesson = task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)
    attach(lesson.model, lesson.attached, name=lesson.name, seed=0)
    shaken(lesson.model, lesson.name)
    return lesson


def vector(base, reading, pooling):
    """The vector of one text by itself, so nothing is padded, in fp64."""
    with torch.no_grad():
        states = base.model.double()(input_ids=torch.tensor([reading.tokens])).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    return pooled / pooled.norm()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_loss_is_info_nce_over_the_group_of_a_sample(task, tmp_path, pooling):
    """−log softmax of the cosines over τ, over the positives of the group and its negatives, in float64."""
    lesson = opened(Embed(base=task.base, data=task.data, pooling=pooling, group=4, temperature=0.1))
    numbers, wanted = [3, 4, 9], []  # of groups 0..3, 4..7 and 8..11
    for n in numbers:
        group = [lesson.samples[lesson.draws.item(m, len(PAIRS))] for m in range(n // 4 * 4, n // 4 * 4 + 4)]
        own = group[n % 4]
        texts = {row.sample.positive: row.positive for row in group if row is not own}  # an equal one is right as well
        texts |= {row.sample.negative: row.negative for row in group if row.negative is not None}
        copies = [row for row in group if row.negative is not None]
        anchor = vector(lesson.base, own.anchor, pooling)
        far = [
            vector(lesson.base, row.positive, pooling) for row in group if row.sample.positive != own.sample.positive
        ]
        far += [vector(lesson.base, row.negative, pooling) for row in copies]
        near = math.exp(float(anchor @ vector(lesson.base, own.positive, pooling)) / 0.1)
        wanted.append(-math.log(near / (near + sum(math.exp(float(anchor @ one) / 0.1) for one in far))))
    lesson.model.float()
    assert float(lesson.loss(numbers).total.detach()) == pytest.approx(sum(wanted) / 3, rel=1e-4)


def test_right_texts_are_never_far(tiny_encoder):
    base = open_language_base(tiny_encoder, kind="encoder")
    pairs = [("a", "b", ""), ("a", "c", ""), ("b", "a", "d"), ("e", "b", "")]
    rows = [encode_sentences(SentencePair(n, *pair), base, 48) for n, pair in enumerate(pairs)]
    readings, may = told_apart(rows)
    assert len(readings) == 5, "four positives and the one negative behind them"
    assert may.int().tolist() == [
        [1, 0, 0, 0, 1],  # c is right of the other a, the third text is a itself, the last b is b again
        [0, 1, 0, 0, 1],
        [0, 1, 1, 0, 1],  # b is the anchor itself
        [0, 1, 1, 1, 1],  # the first b is its own positive
    ]


def test_the_rank_counts_every_other_text_once():
    pairs = [SentencePair(1, "a", "x"), SentencePair(2, "a", "y"), SentencePair(3, "b", "z"), SentencePair(4, "c", "z")]
    scores = torch.tensor([[0.5, 0.9, 0.4, 0.4], [0.5, 0.2, 0.4, 0.4], [0.7, 0.7, 0.7, 0.7], [0.1, 0.0, 0.9, 0.9]])
    assert ranks_of(scores, pairs) == [1, 2, 3, 1]
    assert ranks_of(torch.ones(4, 4), pairs) == [2, 2, 3, 3], "equal vectors of all texts find nothing"


def test_it_is_learned_and_measured(task, tmp_path):
    plain = {
        "steps": 60,
        "batch_size": 4,
        "quiet": True,
        "adapter": LoRA(rank=4, targets="attention+mlp"),
        "learning_rate": 1e-2,
    }
    run = train(task, output=tmp_path / "run", **plain)
    before, after = run.measures[0], run.measures[60]
    assert after["held_out_loss"] < before["held_out_loss"] and after["reciprocal_rank"] >= before["reciprocal_rank"]
    pipe = TextPipeline.open(task.base, kind="encoder")
    pipe.load(run.adapter)
    anchors, positives = (pipe.embed([pair[side] for pair in KEPT]) for side in ("anchor", "positive"))
    ranks = ranks_of(anchors @ positives.mT, [SentencePair(n, *pair.values()) for n, pair in enumerate(KEPT)])
    assert sum(rank == 1 for rank in ranks) / 3 == after["recall_at_1"]
    assert sum(1 / rank for rank in ranks) / 3 == pytest.approx(after["reciprocal_rank"])


def test_passes_and_batches_are_the_same_training(task, tmp_path, settings):
    """Groups of four, cut into passes of 8, 4 and 3: the losses stay, whatever stands together."""
    plain = {**settings, "steps": 2, "adapter": LoRA(rank=2)}
    runs = [
        train(task, output=tmp_path / f"run{size}", **{**plain, "batch_size": size, "accumulation": 12 // size})
        for size in (12, 4, 3)
    ]
    assert all(run.losses == pytest.approx(runs[0].losses, rel=1e-5) for run in runs[1:])


def test_a_killed_run_goes_on_bit_for_bit(task, tmp_path, settings):
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(EmbedLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_a_vector_does_not_depend_on_its_batch_and_blends_are_per_text(task, tmp_path, settings):
    run = train(task, output=tmp_path / "run", **{**settings, "learning_rate": 1e-2})
    pipe = TextPipeline.open(task.base, kind="encoder")
    texts = ["a film", "a very good film in lima and in rome", "oslo"]
    bare = pipe.embed(texts)
    pipe.load(run.adapter, name="near")
    on = pipe.embed(texts)
    mixed = pipe.embed(texts, blend=[{"near": 1.0}, {"near": 0.0}, {"near": 1.0}], batch_size=2)
    torch.testing.assert_close(mixed, torch.stack([on[0], bare[1], on[2]]))
    assert float((on - bare).abs().max()) > 1e-3
    torch.testing.assert_close(torch.cat([pipe.embed(text) for text in texts]), on)
    torch.testing.assert_close(on.norm(dim=-1), torch.ones(3))


def test_the_words_that_a_run_tells_work_and_its_kind_is_kept(task, tmp_path, settings):
    run = train(task, output=tmp_path / "run", **{**settings, "steps": 2})
    words = ["complete", str(task.base), "a film", "a film", "lima", "--adapter", str(run.adapter)]
    said = CliRunner().invoke(main, [*words, "--json"])
    assert said.exit_code == 0, said.stderr
    cosines = json.loads(said.stdout)["cosines"]
    assert cosines[0][1] == pytest.approx(1) and cosines[0][2] == cosines[2][0] < 1
    pipe = TextPipeline.open("facts", kind="encoder")
    with pytest.raises(DoesNotFit, match="^facts is an encoder of texts, which writes nothing$"):
        pipe.complete("a")


def test_scores_below_half_of_the_largest_are_left_out_and_told(tiny_encoder, tmp_path):
    entries = [{"sentence1": "a film", "sentence2": f"film {place}", "score": n} for n, place in enumerate(PLACES)]
    said = []
    lesson = Embed(base=tiny_encoder, data=write(tmp_path / "scored.jsonl", entries)).open(
        LoRA(rank=2), Plan(), said.append
    )
    assert [row.sample.score for row in lesson.samples] == [3, 4, 5, 6]
    assert "3 of 7 pairs of scored.jsonl have a score below 3, half of the largest: left out" in said


def test_virtual_tokens_have_no_part_in_the_mean(task, tmp_path, settings):
    """They stand before the text and are read by it; the states that are pooled are those of the text."""
    adapter = PromptTuning(tokens=3)
    run = train(task, output=tmp_path / "run", **{**settings, "steps": 2, "adapter": adapter, "learning_rate": 1e-2})
    pipe = TextPipeline.open(task.base, kind="encoder")
    bare = pipe.embed(["a film"])
    pipe.load(run.adapter)
    assert pipe.embed(["a film"]).shape == bare.shape and not torch.equal(pipe.embed(["a film"]), bare)


REFUSED = {
    "pooling": ({"pooling": "max"}, "pooling='max': give one of mean, cls, last"),
    "temperature": ({"temperature": 0.0}, "temperature=0.0: temperature must be above 0"),
    "no temperature": ({"temperature": float("nan")}, "temperature=nan: temperature must be above 0"),
    "any temperature": ({"temperature": float("inf")}, "temperature=inf: temperature must be above 0"),
    "group": ({"group": 1}, "group=1: group must be at least 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_values_are_refused(name):
    given, sentence = REFUSED[name]
    with pytest.raises(BadConfig, match=f"^{re.escape(sentence)}$"):
        Embed(base="facts", data="x.jsonl", **given)


def test_what_cannot_be_learned_is_refused_whole(tiny_encoder, tiny_language, tmp_path):
    alike = write(tmp_path / "alike.jsonl", [{"query": place, "positive": "a film"} for place in PLACES])
    with pytest.raises(
        BadFile,
        match=r"^all pairs of alike.jsonl have the same second text \(a film\): there is nothing to tell apart$",
    ):
        opened(Embed(base=tiny_encoder, data=alike))
    with pytest.raises(
        DoesNotFit, match=r"^pooling='cls': the tokenizer of .* has no \[CLS\] mark; take 'mean' or 'last'$"
    ):
        opened(Embed(base=tiny_language, data=write(tmp_path / "x.jsonl", PAIRS), pooling="cls"))


def test_other_models_are_refused(tiny_encoder, task, tmp_path, settings):
    pipe = TextPipeline.open("facts")
    with pytest.raises(
        DoesNotFit,
        match="^facts was opened as a causal language model, which gives no vectors of texts: open it with "
        "kind='encoder'$",
    ):
        pipe.embed("a")
    tokenizer = open_language_base(tiny_encoder, kind="encoder").tokenizer
    parts = TextPipeline.open((T5Model(t5(vocab_size=64).config), tokenizer), kind="encoder")
    with pytest.raises(
        DoesNotFit, match="^T5.* is a model of two parts, one that reads and one that writes; take one "
    ):
        parts.embed("a")
    with pytest.raises(BadConfig, match='^"" has no vector: give a text that is not empty$'):
        TextPipeline.open(tiny_encoder, kind="encoder").embed(["a", ""])
    with pytest.raises(DoesNotFit, match=r"^the text .a a .* has 102 tokens and tiny-encoder reads 48; shorten it$"):
        TextPipeline.open(tiny_encoder, kind="encoder").embed("a " * 100)
