"""The labelled texts that come with ``facts``: how they are selected, and that none stands on both sides."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from studio.families.language.embedded import sample_file

LINES = [
    "  1 This software and database is being provided to you, the LICENSEE, by",
    "01 05 n 01 cat 0 000 | a small animal that likes milk; \"the cat slept\"",
    "02 05 n 01 kitty 0 000 | a small animal that likes milk",
    "03 13 n 01 pie 0 000 | a dish baked in pastry",
    "04 13 n 01 tea 0 000 | a hot drink",
    "05 26 n 01 peace 0 000 | the state that is without a war",
]  # fmt: skip


@pytest.fixture(scope="module")
def script(example):
    return example("glosses")


def test_what_is_selected(script):
    """Each gloss once, before its examples; too short ones, other sorts and the licence are left out."""
    assert script.glosses(LINES) == {"animal": ["a small animal that likes milk"], "food": ["a dish baked in pastry"]}


def test_what_is_written_can_be_read(script, tmp_path):
    script.write(tmp_path / "a.jsonl", {"x": ["b"], "y": ["a"]})
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == [{"text": "a", "label": "y"}, {"text": "b", "label": "x"}]


def test_the_files_that_come_with_the_base(script):
    sides = []
    for name in ("glosses.jsonl", "glosses-held-out.jsonl"):
        rows = [json.loads(line) for line in sample_file("facts", name).read_text(encoding="utf-8").splitlines()]
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(script.SORTS.values()) and len(set(counts.values())) == 1
        sides.append({row["text"] for row in rows})
    assert (len(sides[0]), len(sides[1])) == (1600, 400) and len(sides[0] & sides[1]) < 10
