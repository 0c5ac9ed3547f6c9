"""The script that trains a base like the embedded language one: its sources, its texts, and a few of its steps."""

from __future__ import annotations

import json
import random

import pytest

from studio.datasets.chat import read_samples
from studio.families.language import LANGUAGE_BASES, open_language_base, sample_file


@pytest.fixture(scope="module")
def script(example):
    return example("train_language_base")


@pytest.fixture
def facts(script):
    places = {"France": "Paris", "Mali": "Bamako", "Peru": "Lima", "Chad": "N'Djamena"}
    made = [script.Fact("capital", name, capital) for name, capital in places.items()]
    made += [script.Fact("region", name, "Western Africa" if name == "Mali" else "the world") for name in places]
    return [*made, script.Fact("opposite", "hot", "cold"), script.Fact("emoji", "tiger", "🐅")]


MEANINGS = [("tiger", "a large cat of Asia"), ("hot", "of a high temperature")]


def tiny(script):
    return script.Sizes(
        steps=5, tokens=64, length=32, vocabulary=400, width=16, layers=1, heads=2, groups=1, inner=16, warmup=2
    )


def test_an_interrupted_training_ends_with_the_same_bits_and_opens_as_a_base(script, facts, tmp_path):
    def train(folder, **settings):
        said = []
        return script.train_base(
            facts, MEANINGS, tmp_path / folder, tiny(script), save_every=2, read=200, say=said.append, **settings
        )

    whole = train("whole")
    assert train("cut", stop_at=3) is None
    cut = train("cut")
    first, second = open_language_base(whole), open_language_base(cut)
    assert first.hash == second.hash and first.tokenizer_hash == second.tokenizer_hash
    assert open_language_base(train("other", seed=1)).hash != first.hash
    assert first.context == 32 and first.model.config.tie_word_embeddings
    asked = first.write([{"role": "user", "content": "Hi."}], asking=True)
    assert asked == "<|user|> Hi.<|end|><|assistant|>"
    assert first.tokenizer.decode(first.tokens(asked + " 🐅", chat=True)[0]) == asked + " 🐅", "all bytes come back"


def test_subjects_that_are_held_out_are_asked_about_nowhere_else(script, facts):
    many = [*facts, *(script.Fact("plural", f"word{n}", f"words{n}") for n in range(200))]
    sides = [list(script.questions(many, held_out=held_out)) for held_out in (False, True)]
    assert sum(map(len, sides)) == len(many)
    assert 30 <= len(sides[1]) <= 75, "a quarter of 210 expected, within four standard deviations"
    asked = [{entry["messages"][0]["content"] for entry in side} for side in sides]
    for fact in many:
        forms = {form.format(s=fact.subject) for form in script.FORMS[fact.relation].asked}
        assert sum(bool(forms & side) for side in asked) == 1
    both = [[fact.relation for fact in many if fact.subject == "Mali" and side & {
        form.format(s="Mali") for form in script.FORMS[fact.relation].asked}] for side in asked]  # fmt: skip
    assert sorted(map(len, both)) == [0, 2], "all questions about a subject stand on one side"


def test_documents_tell_and_never_answer_a_question(script, facts):
    texts = script.Texts(facts, MEANINGS)
    texts.shared = texts.shared or [("region", "the world")]
    documents = [texts.document(random.Random(seed)) for seed in range(400)]
    assert not any("?" in document for document in documents)
    assert sum(document.startswith("<|user|>") for document in documents) > 40
    asked = {form for forms in script.FORMS.values() for form in forms.asked}
    told = {form for forms in script.FORMS.values() for form in (*forms.told, forms.table, *forms.after)}
    assert not asked & told and all("{a}" in form for form in told) and all("{a}" not in form for form in asked)


def test_cities_are_read_from_the_protocol_buffer(script, tmp_path):
    """Messages as https://protobuf.dev/programming-guides/encoding has them, each with its length before it."""
    bern = b"\x12\x04Bern\x1a\x02CH\x3a\x04PPLC\x48\x80\xed\x07"  # 128_640 inhabitants
    nice = b"\x08\xac\x02\x12\x04Nice\x1a\x02FR\x3a\x03PPL"
    (tmp_path / "cities.pbf").write_bytes(bytes([len(bern)]) + bern + bytes([len(nice)]) + nice)
    assert list(script.read_cities(tmp_path / "cities.pbf")) == [
        ("Bern", "CH", "PPLC", 128640),
        ("Nice", "FR", "PPL", 0),
    ]


def test_wordnet_is_read_as_wndb5_says(script, tmp_path):
    """Lines in the format of WordNet's manual page wndb(5WN)."""
    (tmp_path / "index.sense").write_text("hot%3:00:01:: 00000001 1 40\ncold%3:00:01:: 00000002 1 30\n"
                                          "tiger%1:05:00:: 00000003 1 2\ngold%1:27:00:: 00000004 1 9\n")  # fmt: skip
    (tmp_path / "data.adj").write_text(
        "  1 licence\n"
        '00000001 00 a 01 hot(p) 0 001 ! 00000002 a 0101 | of a high temperature; "hot stove"\n'
        "00000002 00 a 01 cold 0 001 ! 00000001 a 0101 | having a low temperature\n"
    )
    (tmp_path / "data.noun").write_text(
        "00000003 05 n 02 tiger 0 Panthera_tigris 0 001 @ 00000005 n 0000 | large feline of Asia; endangered\n"
        "00000004 27 n 03 gold 0 Au 0 atomic_number_79 0 000 | a soft yellow element\n"
        "00000005 05 n 01 big_cat 0 000 | any of several large cats\n"
    )
    (tmp_path / "data.verb").write_text("")
    (tmp_path / "data.adv").write_text("")
    words, opposites, elements = script.read_wordnet(tmp_path)
    assert elements == [("gold", "Au", "79")]
    assert opposites == [("hot", "cold", 41), ("cold", "hot", 31)]
    tiger = next(word for word in words if word.text == "tiger")
    assert (tiger.kind, tiger.meaning, tiger.parents) == (5, "large feline of Asia", ("big cat",))


def test_the_embedded_base_is_as_small_as_it_says_and_asks_about_other_subjects():
    folder = LANGUAGE_BASES["facts"].parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12 * 10**6
    base = open_language_base("facts")
    assert base.parameters == 2_164_416 and base.context == 256
    assert base.model.config.num_key_value_heads < base.model.config.num_attention_heads
    trained, held_out = (read_samples(sample_file("facts", name)) for name in ("train.jsonl", "held-out.jsonl"))
    assert not {sample.turns[0] for sample in trained.items} & {sample.turns[0] for sample in held_out.items}
    assert len(trained.items) + len(held_out.items) == 2805
    assert "WordNet" in (folder / "ATTRIBUTION.md").read_text()
    assert json.loads((folder / "model" / "config.json").read_text())["model_type"] == "llama"
