"""What ``studio check`` finds in texts: each fault is planted and named, and nothing is found where there is none."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from studio.cli import main
from studio.datasets.chat import sample_of
from studio.datasets.histogram import histogram
from studio.datasets.pairs import pair_of
from studio.datasets.text_check import Measured, check_texts
from studio.errors import BadFile
from studio.trainers import CausalLM, Classify

GOOD = [{"source": f"number {n}", "target": f"n{n}"} for n in range(20)]


def found(report, severity):
    return [str(problem) for problem in report.problems if problem.severity == severity]


def test_nothing_is_found_where_nothing_is_wrong():
    report = check_texts(GOOD, pair_of, held_out=[{"source": "number 99", "target": "n99"}] * 1 + [
        {"source": f"more {n}", "target": "m"} for n in range(8)
    ])  # fmt: skip
    assert report.ok and report.problems == () and report.samples == 20
    assert "nothing to mend" in str(report)


def test_every_bad_record_is_named_not_the_first_alone():
    report = check_texts([*GOOD, {"source": "a"}, {"source": "b", "target": ""}], pair_of)
    assert not report.ok and report.samples == 20
    assert [problem.files for problem in report.problems] == [("line 21",), ("line 22",)]
    assert "target is empty" in found(report, "error")[1]


def test_doubles_contradictions_and_leaks():
    data = [*GOOD, GOOD[3], {"source": "number 4", "target": "four"}]
    report = check_texts(data, pair_of, held_out=[GOOD[0], {"source": "number 1", "target": "one"}])
    assert found(report, "error") == ["line 1: 1 held-out samples are trained on too: what is measured flatters"]
    warnings = found(report, "warning")
    assert any("the same sample 2 times" in text and "line 4, line 21" in text for text in warnings)
    assert any("the same is asked and answered in 2 ways" in text and "line 5, line 22" in text for text in warnings)
    assert any("1 held-out samples ask what the data asks too" in text for text in warnings)


def test_what_is_cut_off_and_what_never_ends():
    sizes = iter(
        [Measured(5, 2), Measured(8, 0, 3), Measured(8, 3, 1), Measured(4, 2, ends=False)] + [Measured(5, 2)] * 16
    )
    report = check_texts(GOOD, pair_of, measure=lambda sample: next(sizes))
    assert report.ok and report.lengths[:4] == (5, 11, 9, 4) and report.unit == "tokens"
    assert found(report, "warning") == [
        "line 2: the whole answer is cut off, so nothing is learned",
        "line 3: 5% of the samples are longer than max_length and lose their end",
        "line 4: no end mark is learned, so answers will not stop by themselves",
    ]
    nothing = check_texts(GOOD, pair_of, measure=lambda sample: Measured(8, 0, 3))
    assert not nothing.ok


def test_a_histogram_counts_every_sample_once():
    lengths = [3, 3, 4, 17, 40, 41]
    assert sum(int(line.rpartition(" ")[2]) for line in histogram(lengths, "tokens")) == len(lengths)
    assert histogram([7], "tokens") == [f"tokens 7-7 {'█' * 40} 1"] and histogram([], "tokens") == []


def run(*words, code=0):
    result = CliRunner().invoke(main, ["check", *map(str, words)], prog_name="studio")
    assert result.exit_code == code, result.output
    return result


def test_the_command_reads_texts_with_a_base_and_without(tiny_language, tmp_path):
    file = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    file.write_text("".join(json.dumps({"messages": turns, "id": n}) + "\n" for n in range(9)))
    report = json.loads(
        run(file, "--task", "causal-lm", "--base", tiny_language, "--max-length", 80, "--json", "-q").stdout
    )
    assert report["unit"] == "tokens" and report["samples"] == 9 and "⟦" in report["example"]
    assert {problem["severity"] for problem in report["problems"]} == {"warning", "note"}
    assert "9 samples" in run(file, "--task", "causal-lm").stdout
    assert "name the --task that its samples are for (" in run(file, code=2).stderr
    assert "did you mean 'causal-lm'" in run(file, "--task", "causal", code=2).stderr
    assert "--trigger is of pictures" in run(file, "--task", "causal-lm", "--trigger", "ink", code=2).stderr
    assert "are of texts: name their --task" in run(tmp_path, "--max-length", 5, code=2).stderr
    file.write_text('{"text": "a"}\n{"prompt": "b"}\n')
    assert "the sample has no answer" in run(file, "--task", "causal-lm", code=2).stdout


def test_what_all_is_learned_of_asks_nothing_twice():
    report = check_texts([{"text": f"plain {n}"} for n in range(9)], sample_of, held_out=[{"text": "other"}])
    assert report.problems == ()


def test_bad_records_are_all_named_where_a_base_is_given_too(tiny_language):
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    data = [{"messages": turns}, {"text": ""}, {"txet": "a"}]
    report = CausalLM(base=tiny_language, data=data).check()
    assert not report.ok and [p.files for p in report.problems if p.severity == "error"] == [("line 2",), ("line 3",)]
    marks = [
        {"messages": [{"role": "user", "content": f"{text} {n}"}, turns[1]]} for n, text in enumerate(("<end>", "Hi"))
    ]
    report = CausalLM(base=tiny_language, data=marks * 2).check()
    errors = [problem for problem in report.problems if problem.severity == "error"]
    assert [problem.files for problem in errors] == [("line 1",), ("line 3",)] and report.samples == 2
    assert (
        all(problem.message.startswith("the user's turn holds '<end>'") for problem in errors)
        and "Hi" in report.example
    )
    alone = Classify(base=tiny_language, data=[{"text": f"a {n}", "label": "x"} for n in range(9)]).check()
    assert found(alone, "error") == ['all samples have the label "x": there is nothing to tell apart']
    both = [{"text": "a", "label": "x"}, {"premise": "a", "hypothesis": "b", "label": "y"}]
    with pytest.raises(BadFile, match="one classifier learns one of them"):
        Classify(base=tiny_language, data=both).check()


def test_a_share_of_the_data_is_held_out_as_in_training(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(10)))
    assert "10 samples" in run(file, "--task", "causal-lm", "--held-out", "0.1").stdout
    assert "a share lies between 0 and 1" in run(file, "--task", "causal-lm", "--held-out", "1.5", code=2).stderr
