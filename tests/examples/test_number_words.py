"""Numbers in words by CLDR's rules: the rules as ICU's user guide has them, and known words of ten thousand numbers."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def script(example):
    return example("number_words")


ENGLISH = {
    "%spellout-numbering": [["-x", "minus →→;"], ["x.x", "←← point →→;"], ["0", "=%spellout-cardinal=;"]],
    "%spellout-cardinal": [
        *([str(number), f"{word};"] for number, word in enumerate(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen".split())),
        *([str(10 * tens), f"{word}[-→→];"] for tens, word in enumerate(
            "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)),
        ["100", "←← hundred[→%%and→];"],
        ["1000", "←← thousand[ →→];"],
    ],
    "%%and": [["1", "' and =%spellout-cardinal=;"]],
    "_rbnfRulesFile": "en.txt",
}  # fmt: skip
FRENCH = {
    "%spellout-numbering": [
        *([str(number), f"{word};"] for number, word in enumerate(
            "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize".split())),
        ["17", "dix-→→;"], ["20", "vingt[-→%%et-un→];"], ["60/20", "soixante[-→%%et-un→];"],
        ["80/20", "quatre-vingt→%%subcents→;"], ["100", "cent[ →→];"], ["200", "←← cent→%%cents→;"],
    ],
    "%%et-un": [["1", "et-un;"], ["2", "=%spellout-numbering=;"], ["11", "et-onze;"],
                ["12", "=%spellout-numbering=;"]],
    "%%subcents": [["0", "s;"], ["1", "'-=%spellout-numbering=;"]],
    "%%cents": [["0", "s;"], ["1", "' =%spellout-numbering=;"]],
}  # fmt: skip
SPANISH = {  # 101 is no multiple of 100: a multiple is told by the rule before
    "%spellout-numbering": [["0", "cero;"], ["1", "uno;"], ["100", "cien;"], ["101", "ciento →→;"]],
}  # fmt: skip
GERMAN = {
    "%spellout-numbering": [["0", "null;"], ["1", "eins;"], ["4", "vier;"], ["20", "[→%ein→\u00adund\u00ad]zwanzig;"]],
    "%ein": [["1", "ein;"], ["2", "=%spellout-numbering=;"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "number", "told"),
    [
        (ENGLISH, 0, "zero"),
        (ENGLISH, 20, "twenty"),
        (ENGLISH, 42, "forty-two"),
        (ENGLISH, 300, "three hundred"),
        (ENGLISH, 7019, "seven thousand nineteen"),
        (ENGLISH, 984, "nine hundred and eighty-four"),
        (FRENCH, 17, "dix-sept"),
        (FRENCH, 21, "vingt-et-un"),
        (FRENCH, 71, "soixante-et-onze"),
        (FRENCH, 80, "quatre-vingts"),
        (FRENCH, 99, "quatre-vingt-dix-neuf"),
        (FRENCH, 200, "deux cents"),
        (FRENCH, 280, "deux cent quatre-vingts"),
        (SPANISH, 100, "cien"),
        (SPANISH, 101, "ciento uno"),
        (GERMAN, 21, "einundzwanzig"),
        (GERMAN, 24, "vierundzwanzig"),
        (GERMAN, 20, "zwanzig"),
    ],
)
def test_numbers_are_told_as_the_rules_say(script, tmp_path, rules, number, told):
    (tmp_path / "xx.json").write_text(json.dumps({"rbnf": {"rbnf": {"SpelloutRules": rules}}}), encoding="utf-8")
    assert script.Spellout(tmp_path / "xx.json")(number) == told


@pytest.mark.parametrize(
    ("head", "base", "divisor"), [("0", 0, 1), ("7", 7, 1), ("20", 20, 10), ("100", 100, 100), ("101", 101, 100),
                                  ("60/20", 60, 20), ("80/20", 80, 20), ("1000", 1000, 1000),
                                  ("100000/1000", 100_000, 1000)],
)  # fmt: skip
def test_a_rule_cuts_at_the_highest_power_of_its_radix(script, head, base, divisor):
    rule = script.read_rule(head, "x;")
    assert (rule.base, rule.divisor, rule.text) == (base, divisor, "x")
