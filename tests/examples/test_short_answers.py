"""The comparisons that come with ``facts`` are those that the script makes, and its task can read them."""

from __future__ import annotations

import pytest

from studio.datasets.preferences import comparison_of
from studio.datasets.samples import read_samples
from studio.families.language.embedded import sample_file


@pytest.fixture(scope="module")
def script(example):
    return example("short_answers")


@pytest.mark.parametrize(
    ("questions", "name", "count"),
    [("train.jsonl", "preferences.jsonl", 320), ("held-out.jsonl", "preferences-held-out.jsonl", 60)],
)
def test_the_files_are_what_the_script_makes(script, tmp_path, questions, name, count):
    script.write(sample_file("facts", questions), tmp_path / name, count)
    assert (tmp_path / name).read_bytes() == sample_file("facts", name).read_bytes()
    pairs = read_samples(tmp_path / name, comparison_of).items
    assert len(pairs) == count
    for pair in pairs:
        short, long = pair.chosen.whole.answer, pair.rejected.whole.answer
        assert short in long and len(short) < len(long)
