"""Expressions in linear time: what ``re`` matches, and nothing that goes on for ever."""

from __future__ import annotations

import itertools
import re

import pytest

from studio.adapters.contract.automaton import Automaton
from studio.adapters.contract.pattern import check_foreign, matches
from studio.errors import BadFile

TEXTS = ["".join(letters) for size in range(1, 6) for letters in itertools.product("ab.1", repeat=size)]


@pytest.mark.parametrize(
    "expression",
    [
        "a*b",
        "(a|b)+",
        "(?:a|ab)(?:b|)",
        "a{2}b{1,2}",
        "a{,2}",
        "[^a]+",
        r"\w+\.\d",
        r"\ba.*",
        r".*\B1",
        "^a$|b",
        "(?=.*1)a.*",
        "(?!a).*",
        "(a?){3}b",
        "a*?b+?",
        r"[]a.]*",
        r"(?P<x>a)+1?",
        "(a|)(b|)*",
        r"a\.b|[.1]{2,}",
    ],
)
def test_it_matches_what_re_matches(expression):
    ours, theirs = Automaton(expression), re.compile(expression)
    assert [text for text in TEXTS if ours.fullmatch(text) != bool(theirs.fullmatch(text))] == []


@pytest.mark.parametrize("slow", ["(a+)+X", "(a|a)*X", "(.*)*X", "(.?){300}X", "(?=(.*)*X).*"])
def test_what_takes_for_ever_with_re_ends(slow):
    assert not matches(f"re:{slow}", "a" * 300)


@pytest.mark.parametrize("pattern", ["re:(?<=a)b", r"re:(a)\1", "re:(?i)a", "re:(", "re:" + ".*" * 1500])
def test_what_a_file_may_not_bring(pattern):
    with pytest.raises(BadFile, match="x says"):
        check_foreign([pattern], "x says")
