"""Comparisons and verdicts: what the forms of a record mean, and what is refused."""

from __future__ import annotations

import json

import pytest

from studio.datasets.preferences import comparison_of, verdict_of
from studio.datasets.records import Record
from studio.datasets.samples import read_samples
from studio.errors import BadFile

ASK = [{"role": "user", "content": "Capital of Peru?"}]
GOOD = [{"role": "assistant", "content": "Lima"}]
BAD = [{"role": "assistant", "content": "Lima, I think."}]


def compared(**fields):
    return comparison_of(Record(3, "x.jsonl, line 3", fields))[0]


def judged(**fields):
    return verdict_of(Record(3, "x.jsonl, line 3", fields))[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"prompt": ASK, "chosen": "Lima", "rejected": "Lima, I think."},
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"prompt": "Capital of Peru?", "chosen": ASK + GOOD, "rejected": ASK + BAD},
    ],
    ids=["turns", "texts", "conversations", "conversations and a prompt"],
)
def test_four_ways_to_write_a_conversation_say_the_same(fields):
    made = compared(**fields)
    assert made.chosen.whole.turns == (("user", "Capital of Peru?"), ("assistant", "Lima"))
    assert made.rejected.whole.turns == (("user", "Capital of Peru?"), ("assistant", "Lima, I think."))
    assert made.chosen.given == made.rejected.given == 1 and made.chosen.asked == "Capital of Peru?"
    assert made.digest == compared(prompt=ASK, chosen=GOOD, rejected=BAD).digest


def test_answers_that_begin_with_equal_turns_differ_later():
    more = [{"role": "user", "content": "Sure?"}]
    made = compared(chosen=ASK + GOOD + more + GOOD, rejected=ASK + GOOD + more + BAD)
    assert made.chosen.given == 3, "the first answer is a part of the prompt"
    system = [{"role": "system", "content": "Be brief."}]
    assert compared(chosen=system + ASK + GOOD, rejected=system + ASK + BAD).chosen.given == 2


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        (
            "Human: Hi?\n\nAssistant: Yes.",
            "Human: Hi?\n\nAssistant: No.",
            "Human: Hi?\n\nAssistant:",
            (" Yes.", " No."),
        ),
        ("Ask: red", "Ask: rest", "Ask:", (" red", " rest")),  # no word is cut in half
        ("Ask: red rose", "Ask: red", "Ask:", (" red rose", " red")),
    ],
)
def test_two_texts_share_their_beginning_up_to_a_whole_word(chosen, rejected, prompt, answers):
    made = compared(chosen=chosen, rejected=rejected)
    assert made.chosen.whole.prompt == made.rejected.whole.prompt == prompt
    assert (made.chosen.whole.completion, made.rejected.whole.completion) == answers


def test_verdicts_have_one_answer_and_a_label():
    made = judged(prompt=ASK, completion=GOOD, label=False)
    assert made.answer.whole.turns[-1] == ("assistant", "Lima") and made.good is False
    assert judged(prompt="1 + 1 =", completion=" 2", label=True).answer.whole.completion == " 2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "chosen and rejected are equal, so there is nothing to prefer",
        ),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "the sample has no answer: chosen is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "the sample has no answer: rejected is empty"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "prompt is empty"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "a prompt is a text or a list of turns, not 3"),
        ({"chosen": "one two", "rejected": "two one"}, "begin with other words, so they answer no common prompt"),
        (
            {"chosen": "Ask: ", "rejected": "Ask: no"},
            "chosen has nothing behind what both begin with: its answer is empty",
        ),
        ({"chosen": ASK + GOOD, "rejected": "no"}, "chosen and rejected must both be texts, or both lists of turns"),
        (
            {"chosen": ASK + GOOD, "rejected": [{"role": "user", "content": "Hm?"}, *GOOD]},
            "begin with other turns, so they answer no common prompt",
        ),
        (
            {"prompt": "Oman", "chosen": ASK + GOOD, "rejected": ASK + BAD},
            ".Oman. is not what the conversations begin with",
        ),
        (
            {"prompt": ASK + GOOD, "chosen": "b", "rejected": "c"},
            "ends with a turn of the user's, not with the assistant's",
        ),
        (
            {"prompt": ASK, "chosen": ASK, "rejected": BAD},
            "chosen begins with a turn of the user's, not the assistant's",
        ),
        ({"prompt": ASK, "chosen": [], "rejected": BAD}, r"chosen must be a text or a list of turns, not \[\]"),
        ({"prompt": "a", "chosen": "b", "reject": "c"}, "found: 'prompt', 'chosen', 'reject'; did you mean 'rejected'"),
        ({"prompt": "a", "completion": "b", "label": True}, "it has one answer with a label, .* loss='kto'"),
    ],
)
def test_comparisons_that_say_nothing_are_refused(fields, message):
    with pytest.raises(BadFile, match=f"^x.jsonl, line 3: .*{message}"):
        compared(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": 1}, "label must be true or false, not 1"),
        ({"prompt": "a", "completion": "", "label": True}, "the sample has no answer: completion is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "it has two answers, .* loss='dpo'"),
        (
            {"prompt": "a", "completion": "b"},
            "a sample has prompt, completion and label; found: 'prompt', 'completion'",
        ),
    ],
)
def test_verdicts_that_say_nothing_are_refused(fields, message):
    with pytest.raises(BadFile, match=f"^x.jsonl, line 3: .*{message}"):
        judged(**fields)


def test_fields_that_are_not_read_are_counted(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "a", "chosen": " b", "rejected": " c", "margin": 1}) + "\n")
    assert read_samples(file, comparison_of).unused == {"margin": 1}
