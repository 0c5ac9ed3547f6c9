"""Texts that belong together: every form of a record, scores, and what is refused."""

from __future__ import annotations

import re

import pytest

from studio.datasets.records import Record
from studio.datasets.sentences import close_ones, closeness_limit, sentences_of
from studio.errors import BadFile

FORMS = (("anchor", "positive"), ("query", "positive"), ("sentence1", "sentence2"), ("source", "target"))


def pair(**fields):
    return sentences_of(Record(3, "x.jsonl, line 3", fields))


@pytest.mark.parametrize(("first", "second"), FORMS)
def test_the_forms_of_a_pair(first, second):
    made, known = pair(**{first: "A cat.", second: "A kitten.", "id": 7})
    assert (made.line, made.anchor, made.positive, made.negative, made.score) == (3, "A cat.", "A kitten.", "", None)
    assert set(known) == {first, second}


def test_what_may_stand_beside():
    assert pair(anchor="a", positive="b", negative="c")[0].negative == "c"
    made, known = pair(sentence1="a", sentence2="b", score="3.5")  # a table's number
    assert made.score == 3.5 and "score" in known
    assert "score" not in pair(anchor="a", positive="b", score=1)[1], "it is told as a field that is not used"


def test_close_pairs_have_half_of_the_largest_score():
    pairs = [pair(sentence1="a", sentence2=f"b{n}", score=n)[0] for n in range(6)] + [pair(anchor="a", positive="b")[0]]
    kept = close_ones(pairs, closeness_limit(pairs), "x.jsonl")
    assert [one.score for one in kept] == [3, 4, 5, None]
    assert closeness_limit(pairs[-1:]) is None


REFUSED = {
    "nothing": (
        {"text": "a", "positve": "b"},
        "x.jsonl, line 3: a sample has anchor and positive; query and positive; sentence1 and sentence2; or source and "
        "target; found: 'text', 'positve'; did you mean ",
    ),
    "two": (
        {"anchor": "a", "positive": "b", "query": "c"},
        "x.jsonl, line 3: it has 'anchor' and 'positive' and 'query'; which are meant?",
    ),
    "empty": ({"anchor": " ", "positive": "b"}, "x.jsonl, line 3: anchor is empty"),
    "number": ({"source": "a", "target": 4}, "x.jsonl, line 3: target must be a text, not 4"),
    "same": (
        {"anchor": "a", "positive": "b", "negative": "b"},
        'x.jsonl, line 3: negative is the same text as positive: "b"',
    ),
    "score": (
        {"sentence1": "a", "sentence2": "b", "score": "near"},
        'x.jsonl, line 3: score must be a finite number, not "near"',
    ),
    "large": (
        {"sentence1": "a", "sentence2": "b", "score": 10**400},
        "x.jsonl, line 3: score must be a finite number, not 1000",
    ),
    "nan": (
        {"sentence1": "a", "sentence2": "b", "score": float("nan")},
        "x.jsonl, line 3: score must be a finite number, not NaN",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused_by_its_line(name):
    fields, sentence = REFUSED[name]
    with pytest.raises(BadFile, match=f"^{re.escape(sentence)}"):
        pair(**fields)


def test_scores_that_say_nothing_are_refused():
    far = [pair(sentence1="a", sentence2="b", score=score)[0] for score in (0, -1)]
    with pytest.raises(
        BadFile, match="^no pair of x has a score above 0; give those that are close the larger scores$"
    ):
        close_ones(far, closeness_limit(far), "x")
    with pytest.raises(BadFile, match="^no pair of x has a score of 2.5 or more, half of the largest: none is close$"):
        close_ones(far, 2.5, "x")
