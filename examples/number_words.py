"""Numbers in words, by the spellout rules of Unicode CLDR (the npm package ``cldr-rbnf``, Unicode License v3).

The rules are those of ICU's RuleBasedNumberFormat (https://unicode-org.github.io/icu/userguide/format_parse/numbers/rbnf.html),
of which this reads what whole numbers need.

::

    python examples/number_words.py NPM_FOLDER de 1984      # eintausendneunhundertvierundachtzig
"""

from __future__ import annotations

import json
import math
import re
import sys
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LANGUAGES: Final = {
    "da": "Danish", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch",
    "pt": "Portuguese", "sv": "Swedish", "tr": "Turkish",
}  # fmt: skip
PLACE: Final = re.compile(r"([←→=])(%%?[\w-]+)?\1")


@dataclass(frozen=True)
class Rule:
    """How the numbers from ``base`` on are told, up to the next rule's; ``divisor`` cuts them in two."""

    base: int
    divisor: int
    text: str

    def gives_way(self, number: int) -> bool:
        """Whether a multiple of the divisor is told by the rule before, as ICU rolls back."""
        return "→" in self.text and number % self.divisor == 0 and self.base % self.divisor != 0


class Spellout:
    """Tells whole numbers in the words of a language.

    Args:
        file: ``cldr-rbnf/rbnf/LANGUAGE.json``.
    """

    def __init__(self, file: Path) -> None:
        told = json.loads(file.read_text(encoding="utf-8"))["rbnf"]["rbnf"]["SpelloutRules"]
        self.rules = {
            name: [read_rule(*entry) for entry in entries if re.fullmatch(r"\d+(/\d+)?", entry[0])]
            for name, entries in told.items()
            if isinstance(entries, list)
        }

    def __call__(self, number: int, name: str = "%spellout-numbering") -> str:
        """Returns ``number`` in words by the rules of that name, without the soft hyphens."""
        return self.told(number, name).replace("\u00ad", "")

    def told(self, number: int, name: str) -> str:
        """The words with their soft hyphens."""
        rules = self.rules[name]
        at = bisect_right([rule.base for rule in rules], number) - 1
        rule = rules[at - 1] if rules[at].gives_way(number) else rules[at]
        left, rest = divmod(number, rule.divisor)
        text = re.sub(r"\[(.*?)\]", r"\1" if rest else "", rule.text)
        values = {"←": left, "→": rest, "=": number}
        return PLACE.sub(lambda place: self.told(values[place[1]], place[2] or name), text)


def read_rule(head: str, text: str) -> Rule:
    """Reads ``["80/20", "quatre-vingt→%%subcents-m→;"]``: a base, a radix where it is not ten, and what is told."""
    base, radix = (int(part) for part in (*head.split("/"), "10")[:2])
    exponent = int(math.log(base) / math.log(radix) + 1e-9) if base else 0
    return Rule(base, radix**exponent, text.removesuffix(";").removeprefix("'"))


def spellouts(npm: Path) -> dict[str, Spellout]:
    """Code of each language of :data:`LANGUAGES` -> its words."""
    return {code: Spellout(npm / "cldr-rbnf" / "rbnf" / f"{code}.json") for code in LANGUAGES}


if __name__ == "__main__":
    print(spellouts(Path(sys.argv[1]))[sys.argv[2]](int(sys.argv[3])))
