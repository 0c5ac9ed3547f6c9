"""Labelled texts: the forms of a record, what a label is, and what is refused, each by its place."""

from __future__ import annotations

import json

import pytest

from studio.datasets.labelled import labelled_of, sorted_labels
from studio.datasets.samples import read_samples
from studio.errors import BadFile


def read(folder, *entries):
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read_samples(file, labelled_of)


@pytest.mark.parametrize(
    ("entry", "form", "texts", "labels"),
    [
        ({"text": "Call now!", "label": "spam"}, "text", ("Call now!",), ("spam",)),
        ({"sentence": "Call now!", "label": 1}, "text", ("Call now!",), ("1",)),
        ({"text": "Call now!", "label": 1.0}, "text", ("Call now!",), ("1",)),
        ({"text": "Call now!", "label": True}, "text", ("Call now!",), ("true",)),
        ({"text": "Call now!", "label": " spam\n"}, "text", ("Call now!",), ("spam",)),
        ({"sentence1": "A.", "sentence2": "B.", "label": "same"}, "pair", ("A.", "B."), ("same",)),
        ({"premise": "A.", "hypothesis": "B.", "label": 2}, "pair", ("A.", "B."), ("2",)),
        ({"tokens": ["in", "Accra"], "tags": ["O", "B-LOC"]}, "words", ("in", "Accra"), ("O", "B-LOC")),
        ({"words": ["in", "Accra"], "ner_tags": [0, 5]}, "words", ("in", "Accra"), ("0", "5")),
    ],
)
def test_the_forms(tmp_path, entry, form, texts, labels):
    found = read(tmp_path, entry | {"id": 7})
    (sample,) = found.items
    assert (sample.form, sample.texts, sample.labels) == (form, texts, labels)
    assert found.unused == {"id": 1}


def test_a_table_has_the_same_columns(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text('text,label\n"Call now, friend!",spam\nSee you at 5.,ham\n')
    assert [sample.labels for sample in read_samples(file, labelled_of).items] == [("spam",), ("ham",)]


def test_whole_numbers_are_in_the_order_of_their_values():
    assert sorted_labels(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_labels(["10", "9", "x"]) == ("10", "9", "x")
    assert sorted_labels(["10", "9" * 5000]) == ("10", "9" * 5000), "no number of so many digits is made"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": "a", "labl": "x"}, "a sample has text and label; sentence1, sentence2 and label; premise, hypothesis "
         "and label; or tokens and tags; found: 'text', 'labl'; did you mean 'label' by 'labl'?"),
        ({"text": "a", "sentence": "b", "label": "x"}, "it has 'text' and 'sentence'; which one is meant?"),
        ({"text": "a", "tokens": ["a"], "tags": ["O"]}, "it has 'text' and 'tokens'; which one is meant?"),
        ({"text": " ", "label": "x"}, "text is empty"),
        ({"text": "a", "label": ""}, 'label must be a text or a whole number, not ""'),
        ({"text": "a", "label": None}, "label must be a text or a whole number, not null"),
        ({"text": "a", "label": 0.5}, "label must be a text or a whole number, not 0.5"),
        ({"text": "a", "label": 10**20}, "label must be a text or a whole number, not 100000000000000000000"),
        ({"text": "a", "label": ["x", "y"]},
         'label must be a text or a whole number, not ["x", "y"]; a sample has one label'),
        ({"premise": "a", "hypothesis": 3, "label": "x"}, "hypothesis must be a text, not 3"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "it has 2 tokens and 1 tags; give one of tags for each word"),
        ({"tokens": "a b", "tags": "O O"}, 'tokens must be a list with one entry for each word, not "a b"'),
        ({"tokens": [], "tags": []}, "tokens is empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, 'word 2 of tokens must be a text that is not empty, not " "'),
        ({"tokens": ["a"], "tags": [None]}, "entry 1 of tags must be a text or a whole number, not null"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, entry, message):
    with pytest.raises(BadFile) as caught:
        read(tmp_path, {"text": "fine", "label": "x"}, entry)
    assert str(caught.value) == f"{tmp_path / 'data.jsonl'}, line 2: {message}"
