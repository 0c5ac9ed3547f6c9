"""Holes in code: how they are made, written with a base's marks, and learned."""

from __future__ import annotations

import json

import pytest

from studio.adapters import LoRA
from studio.datasets.records import Record
from studio.datasets.snippets import Snippet, snippet_of
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.trainers import Code, train
from studio.trainers.language.fim import MARKS, Marks, asked, marks_of
from studio.trainers.loop.plan import Plan

CODE = "def add(a, b):\n    total = a + b\n    return total\n\n\ndef twice(a):\n    return 2 * a\n"


@pytest.fixture
def base(tiny_language):
    return open_language_base(tiny_language)


def with_marks(base, marks):
    base.tokenizer.add_special_tokens({"extra_special_tokens": [marks.before, marks.behind, marks.hole]})
    return base


def test_holes_are_in_the_code_and_always_the_same():
    holes = list(Snippet(1, CODE).holes(6))
    assert len(holes) > 3 and all(one.prefix + one.middle + one.suffix == CODE for one in holes)
    assert all(one.middle.strip() for one in holes)
    assert [one.content for one in holes] == [one.content for one in Snippet(7, CODE).holes(6)]
    given = Snippet(1, "a", "b", "c")
    assert list(given.holes(5)) == [given]
    one_line = next(iter(Snippet(1, "  return a + b").holes(1)))
    assert one_line.prefix + one_line.middle + one_line.suffix == "  return a + b" and one_line.middle


@pytest.mark.parametrize("marks", MARKS[:3])
def test_a_base_is_asked_with_its_own_marks(base, marks):
    found = marks_of(with_marks(base, marks), None)
    sample = asked(Snippet(1, "a = ", "1", "\nb = 2\n"), found, base, 96)
    assert found == marks
    assert (sample.prompt, sample.completion) == (f"{marks.before}a = {marks.behind}\nb = 2\n{marks.hole}", "1")


def test_what_is_too_long_is_cut_far_from_the_hole(base):
    marks = Marks("<P>", "<S>", "<M>")
    snippet = Snippet(1, "x" * 100, "hole", "y" * 100)
    for length in (96, 60, 40):
        sample = asked(snippet, marks, base, length)
        left, right = sample.prompt.removeprefix("<P>").removesuffix("<M>").split("<S>")
        assert snippet.prefix.endswith(left) and snippet.suffix.startswith(right) and abs(len(left) - len(right)) <= 1
        tokens = base.tokens(sample.prompt + sample.completion, chat=False)[0]
        assert length - 3 <= len(tokens) + 1 <= length, "it fills what there is, with the end"
    short = asked(Snippet(1, "x" * 100, "hole", "y"), marks, base, 60)
    assert short.prompt.endswith("<S>y<M>") and short.prompt.count("x") > 30, "what one side spares the other has"


def test_training_fills_holes_better_than_before(tiny_language, tmp_path):
    lines = [f"value_{n} = {n} + {n}\nprint(value_{n})\n" for n in range(16)]
    data = tmp_path / "code.jsonl"
    data.write_text("".join(json.dumps({"code": line}) + "\n" for line in lines))
    task = Code(base=tiny_language, data=data, held_out=0.3, marks=("<P>", "<S>", "<M>"), answers=2, preview_tokens=4)
    run = train(task, adapter=LoRA(rank=4, targets="attention+mlp"), output=tmp_path / "run", steps=40, batch_size=8,
                learning_rate=1e-2, quiet=True)  # fmt: skip
    assert run.measures[40]["held_out_loss"] < 0.7 * run.measures[0]["held_out_loss"]


def test_a_base_without_marks_is_refused(tiny_language, tmp_path):
    data = tmp_path / "code.jsonl"
    data.write_text(json.dumps({"code": CODE}) + "\n")
    with pytest.raises(DoesNotFit, match="has no marks to fill in the middle by"):
        Code(base=tiny_language, data=data).open(LoRA(), Plan(), lambda line: None)
    with pytest.raises(BadConfig, match="three different texts"):
        Code(base=tiny_language, data=data, marks=("a", "b"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cod": "x"}, "did you mean 'code' by 'cod'"),
        ({"code": "x", "text": "y"}, "it has 'code' and 'text'; which one is meant"),
        ({"code": "x", "middle": "y"}, "it has 'code' and also 'middle'"),
        ({"prefix": "", "middle": "x"}, "nothing stands around the hole"),
        ({"prefix": "a", "middle": " "}, "middle is empty"),
        ({"code": ""}, "code is empty"),
    ],
)
def test_what_is_no_snippet_is_refused(fields, message):
    with pytest.raises(BadFile, match=message):
        snippet_of(Record(1, "here", fields))
