"""Makes the comparisons that come with the base ``facts``: of two right answers to a question the short one is better.

    python examples/short_answers.py studio/families/facts -o studio/families/facts

The questions and the short answers are the first of the files of questions there; the long answer says the same in one
of four ways.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

WAYS: Final = (
    "The answer is {}.", "That would be {}, as far as I know.", "I think that it is {}.", "{}, but please look it up.",
)  # fmt: skip
"""How a long answer says what the short one says."""
COUNTS: Final = {"train": 320, "held-out": 60}


def comparison(question: dict[str, str], answer: str, place: int) -> dict[str, Any]:
    """Returns a comparison of the short answer with a long one.

    Example:
        >>> comparison({"role": "user", "content": "Capital of Peru?"}, "Lima", 0)["rejected"]
        'The answer is Lima.'
    """
    return {"prompt": [question], "chosen": answer, "rejected": WAYS[place % len(WAYS)].format(answer)}


def write(source: Path, target: Path, count: int) -> None:
    """Makes a file of comparisons of the first questions of a file."""
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    turns = [json.loads(line)["messages"] for line in lines]
    made = [comparison(question, answer["content"], place) for place, (question, answer) in enumerate(turns)]
    target.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="the folder with train.jsonl and held-out.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    for name, count in COUNTS.items():
        ending = "" if name == "train" else f"-{name}"
        write(given.questions / f"{name}.jsonl", given.output / f"preferences{ending}.jsonl", count)


if __name__ == "__main__":
    main()
