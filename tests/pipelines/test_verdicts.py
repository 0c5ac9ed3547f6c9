"""Verdicts: one path, any blend, by a classifier's head or by how likely a model says each label."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import studio
from studio.adapters import LoRA, attach, blend, current_blend
from studio.cli import main
from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.files import save
from studio.pipelines import TextPipeline
from tiny import language

TEXTS = ["a good film in lima", "a bad film", "in accra , a film"]
LABELS = ("bad", "good", "soso")


@pytest.fixture
def pipe(tiny_encoder):
    return TextPipeline.open(tiny_encoder, kind="classifier", labels=LABELS)


def put(pipe, name, seed, targets="attention"):
    attach(pipe.model, LoRA(rank=2, targets=targets), name=name, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(pipe.model, name).values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw))


def scores(made):
    return torch.tensor([list(verdict.scores.values()) for verdict in made], dtype=torch.float64)


def test_scores_are_the_softmax_of_the_logits(pipe):
    made = pipe.classify(TEXTS)
    for text, verdict in zip(TEXTS, made, strict=True):
        with torch.no_grad():
            logits = pipe.model(**pipe.base.tokenizer(text, return_tensors="pt")).logits[0]
        wanted = dict(zip(LABELS, torch.softmax(logits.double(), -1).tolist(), strict=True))
        assert verdict.scores == pytest.approx(wanted, rel=1e-5)
        assert verdict.text == text and verdict.label == max(wanted, key=wanted.get)
    assert pipe.classify(TEXTS[0]) == [pipe.classify(TEXTS[0])[0]]


def test_a_verdict_does_not_depend_on_its_neighbours(pipe):
    together = scores(pipe.classify(TEXTS))
    alone = torch.cat([scores(pipe.classify(text)) for text in TEXTS])
    small = scores(pipe.classify(TEXTS[::-1], batch_size=2)).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(together, small, rtol=1e-5, atol=0)


def test_blends_per_text(pipe):
    put(pipe, "one", 1)
    put(pipe, "two", 2)
    blend(pipe.model, {})
    blends = [{"one": 1.0}, {"two": 0.8}, {"one": 0.5, "two": -0.5}, {}]
    mixed = scores(pipe.classify([TEXTS[0]] * 4, blend=blends))
    alone = torch.cat([scores(pipe.classify(TEXTS[0], blend=wanted)) for wanted in blends])
    torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=0)
    assert len({tuple(row) for row in mixed.tolist()}) == 4, "four blends give four verdicts"
    per_text = scores(pipe.classify([TEXTS[0]] * 2, blend={"one": [1.0, 0.0], "two": [0.0, 0.8]}))
    torch.testing.assert_close(per_text, mixed[:2], rtol=1e-5, atol=0)
    assert current_blend(pipe.model) == {}, "the blend is given back"


def test_words_are_judged_one_by_one(tiny_encoder):
    pipe = TextPipeline.open(tiny_encoder, kind="token-classifier", labels=("B-LOC", "O"))
    (verdict,) = pipe.classify("a filmstrip in Accra")
    assert [word.text for word in verdict.words] == ["a", "filmstrip", "in", "Accra"] and not verdict.scores
    assert verdict.label == " ".join(word.label for word in verdict.words)
    assert pipe.classify([["a", "filmstrip", "in", "Accra"]]) == [verdict]
    coded = pipe.base.tokenizer("a filmstrip in Accra", return_tensors="pt")
    with torch.no_grad():
        logits = pipe.model(**coded).logits[0]
    for number, word in enumerate(verdict.words):  # transformers' own count of words
        wanted = torch.softmax(logits[coded.word_ids().index(number)].double(), -1).tolist()
        assert list(word.scores.values()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_that_writes_judges_by_how_likely_it_says_a_label(tiny_language, chat):
    """log p(label, end | prompt) by hand in fp64, a token after the other."""
    pipe = TextPipeline.open(tiny_language)
    labels, text = ("Paris", "not Paris", "Lima"), "France"
    (verdict,) = pipe.classify(text, labels=labels, template="{text} Label : ", chat=chat)
    before = "<user> France Label : <end><bot>" if chat else "France Label : "
    model, sums = pipe.model.double(), []
    for label in labels:
        coded = pipe.base.tokenizer(f"{before}{label}<end>", return_offsets_mapping=True)
        tokens = torch.tensor([coded["input_ids"]])
        with torch.no_grad():
            chances = F.log_softmax(model(tokens).logits[0], -1)
        said = [place for place, (_, end) in enumerate(coded["offset_mapping"]) if end > len(before)]
        sums.append(sum(float(chances[place - 1, tokens[0, place]]) for place in said))
    wanted = torch.softmax(torch.tensor(sums, dtype=torch.float64), -1).tolist()
    assert list(verdict.scores.values()) == pytest.approx(wanted, rel=1e-3)
    assert verdict.label == labels[max(range(3), key=wanted.__getitem__)]


def test_a_model_of_encoder_and_decoder_judges_so_too(tiny_language):
    tokenizer = TextPipeline.open(tiny_language).base.tokenizer
    model = language("t5")
    model.resize_token_embeddings(len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    pipe = TextPipeline.open((model.eval(), tokenizer))
    (verdict,) = pipe.classify("France", labels=("Paris", "a Lima"), chat=False)
    sums = []
    for label in ("Paris", "a Lima"):
        said = torch.tensor([[*tokenizer(label)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = model(input_ids=tokenizer("France", return_tensors="pt")["input_ids"], labels=said).loss
        sums.append(-float(loss) * said.shape[1])
    assert list(verdict.scores.values()) == pytest.approx(torch.softmax(torch.tensor(sums), 0).tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"texts": []}, BadConfig, "there is no text to judge: give at least one"),
        ({"texts": [" "]}, BadConfig, '" " cannot be judged: give a text that is not empty, or a pair of such texts'),
        ({"texts": [("a", "b", "c")]}, BadConfig,
         '["a", "b", "c"] is 3 texts; one verdict is on one text or on a pair'),
        *(({"texts": texts}, BadConfig, f"{shown} cannot be judged") for texts, shown in ((5, "5"), ([None], "null"))),
        ({"template": "{text}:"}, BadConfig, "tiny-encoder has a head, which reads texts as they are: leave out templ"),
        ({"chat": "yes"}, BadConfig, "chat='yes' must be True, False or None"),
        ({"labels": ("a", "b")}, BadConfig, "tiny-encoder has a head for bad, good, soso: give no labels"),
        ({"blend": {"oen": 1.0}}, UnknownName, "oen"),
        ({"blend": [{}, {}]}, BadConfig, "2 blends for 1 texts; give one dict, or one per text"),
        ({"texts": "film " * 60}, DoesNotFit, "has 62 tokens and tiny-encoder reads 48; shorten it"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(pipe, change, error, message):
    with pytest.raises(error) as caught:
        pipe.classify(**{"texts": "a film", **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "labels=None: tiny-language has no head, so give at least two labels, all different, that it could say"),
        ({"labels": ("a", "a")}, "labels=('a', 'a'): tiny-language has no head, so give at least two labels"),
        ({"labels": "ab"}, "labels='ab': tiny-language has no head, so give at least two labels"),
        ({"labels": ("a", 5)}, "labels=('a', 5): tiny-language has no head, so give at least two labels"),
        ({"labels": ("a", "b"), "template": 5}, "template=5 has no {text}, where each text is put"),
        ({"labels": ("a", "b"), "template": "Label:"}, "template='Label:' has no {text}, where each text is put"),
        ({"labels": ("a", "b"), "texts": [("x", "y")]}, "a label that is said follows one text"),
    ],
)
def test_what_a_model_that_writes_needs(tiny_language, change, message):
    with pytest.raises(BadConfig) as caught:
        TextPipeline.open(tiny_language).classify(**{"texts": "a film", **change})
    assert message in str(caught.value)


def test_a_classifier_writes_nothing_and_takes_no_other_adapter(pipe, tiny_encoder, tiny_language, tmp_path):
    with pytest.raises(DoesNotFit, match="was opened as a classifier of texts, which writes nothing"):
        pipe.complete("Hi.")
    with pytest.raises(DoesNotFit, match="tiny-encoder is an encoder of texts, which writes nothing"):
        TextPipeline.open(tiny_encoder).complete("Hi.")
    with pytest.raises(
        DoesNotFit, match="tiny-encoder, opened as 'encoder', neither tells labels apart nor writes them"
    ):
        TextPipeline.open(tiny_encoder).classify("Hi.")
    put(pipe, "one", 1)
    facts = {"kind": "classifier", "labels": json.dumps(LABELS), "form": "pair"}
    file = save(pipe.model, tmp_path / "one.safetensors", name="one", metadata=facts)
    with pytest.raises(DoesNotFit) as caught:
        TextPipeline.open(tiny_encoder, kind="classifier", labels=("x", "y")).load(file)
    assert str(caught.value) == (
        f"{file} tells bad, good, soso apart, and tiny-encoder was opened to tell x, y: open it with labels={LABELS!r}"
    )
    with pytest.raises(DoesNotFit) as caught:
        TextPipeline.open(tiny_language).load(file)
    assert str(caught.value) == (
        f"{file} is for a classifier of texts, and tiny-language was opened as a causal language model: open it with "
        f"kind='classifier', labels={LABELS!r}"
    )
    other = TextPipeline.open(tiny_encoder, kind="classifier", labels=LABELS)
    other.load(file)
    with pytest.raises(BadConfig, match='"a film" is one text, and the adapter was trained on pairs of texts'):
        other.classify("a film")
    assert other.classify([("a film", "a bad film")])[0].text == "a film a bad film"


# -- from the command line -----------------------------------------------------------------------------------------


def said(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="studio")
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}"
    return result


def test_a_classifier_is_tuned_and_asked(tiny_encoder, tmp_path):
    data = tmp_path / "films.csv"
    data.write_text("text,label\n" + "".join(f"a {word} film in {place},{word}\n" for word in ("good", "bad")
                                             for place in ("lima", "accra", "rome")))  # fmt: skip
    words = ("--steps", 40, "--batch-size", 4, "--learning-rate", 0.01, "--held-out", data)
    made = said("tune", "classify", tiny_encoder, data, "-o", tmp_path / "run", *words)
    assert "accuracy: 0.500 before, 1.000 after" in made.stdout and "studio complete" in made.stdout
    run = tmp_path / "run"
    assert said("complete", tiny_encoder, "a bad film", "--adapter", run, "-q").stdout == ""
    shown = said("complete", tiny_encoder, "a bad film", "a good film <run:0>", "--adapter", run).stdout
    found = json.loads(said("complete", tiny_encoder, "a bad film", "--adapter", run, "--json").stdout)
    (verdict,) = found["verdicts"]
    assert verdict["label"] == "bad" and f"> a bad film\nbad ({verdict['scores']['bad']:.2f})\n" in shown


def test_a_language_model_says_the_likeliest_label(tiny_language):
    words = (
        "complete",
        tiny_language,
        "What is the capital? ",
        "--raw",
        "--label",
        "Paris",
        "--label",
        "Lima",
        "--json",
    )
    (verdict,) = json.loads(said(*words).stdout)["verdicts"]
    assert set(verdict["scores"]) == {"Paris", "Lima"} and sum(verdict["scores"].values()) == pytest.approx(1)
    assert "give at least two labels" in said("complete", tiny_language, "Hi", "--label", "x", code=2).stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--language", "de"), "--language changes nothing here"),
        (("--ask", "What?"), "--ask changes nothing here"),
        (("--label", "a", "--label", "b", "--system", "Be brief."), "--system changes nothing here"),
    ],
)
def test_an_option_of_other_bases_is_refused(tiny_language, words, says):
    assert says in said("complete", tiny_language, "Hi", *words, code=2).stderr


def test_labels_that_cannot_be_read_are_none(tiny_language, tmp_path):
    pipe = TextPipeline.open(tiny_language)
    put(pipe, "odd", 1)
    file = save(pipe.model, tmp_path / "odd.safetensors", name="odd", metadata={"labels": "no list"})
    found = json.loads(said("complete", tiny_language, "Hi", "--adapter", file, "--json", "--max-new-tokens", 2).stdout)
    assert len(found["completions"]) == 1
