"""docs/conversions.md, out of what ``benchmarks.conversions`` found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from studio.adapters import METHODS

__all__ = ["PAGE", "page", "without_names"]

PAGE: Final = Path(__file__).parents[1] / "docs" / "conversions.md"
FORMATS: Final = ("diffusers", "kohya", "native", "peft")
FUSED: Final = ("chroma", "flux1", "flux2", "lumina2", "sd3")
HEAD: Final = """# What can be converted, and how exactly

Made by `python -m benchmarks.conversions`; a part of it runs with the tests, all of it with the slow ones. Each row is
a method, each column a format that `studio convert` writes, on layers of the denoisers of these families:
{families}.
Methods for whole language models (virtual tokens) have one form in all files.

* **exact**: converted to each of the other formats that hold it and back, the file is what it was, every tensor to the
  bit and in its type.
* **same change**: what it changes comes back, in other factors: layers of other alphas that are one layer natively
  share one alpha there.
* **as lora**: the programs of this format have the same change under that name, so it comes back as a LoRA.
* **(n)**: refused, by the sentence below, and no file is left.

Where families differ, a cell says which have it otherwise; *fused* are those whose queries, keys and values are one
layer natively: {fused}. `ΔW` of every file on the way, computed in float64 from what
is read out of it, biases included, is that of the adapter that it was made from (≤ 1e-6).

"""


def page(kept: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """Returns the page.

    Args:
        kept: family -> row -> format -> what became of it.
    """
    notes: dict[str, int] = {}
    families = sorted(kept)
    lines = [f"| | {' | '.join(FORMATS)} |", "|---" * (1 + len(FORMATS)) + "|"]
    for row in sorted(kept[families[0]]):
        found = ({family: without_names(kept[family][row][format], row) for family in families} for format in FORMATS)
        lines.append(f"| {row} | {' | '.join(_cell(outcomes, notes) for outcomes in found)} |")
    listed = [f"{number}. {sentence}" for sentence, number in notes.items()]
    head = HEAD.format(families=", ".join(families), fused=", ".join(FUSED))
    return head + "\n".join([*lines, "", "Refused, with `…` in the place of what is named:", "", *listed]) + "\n"


def _cell(outcomes: Mapping[str, str], notes: dict[str, int]) -> str:
    """What became of a method in a format for most families; what for which others."""
    said: dict[str, list[str]] = {}
    for family, outcome in outcomes.items():
        held = outcome in ("exact", "same change") or re.fullmatch(r"as \w+", outcome)
        said.setdefault(outcome if held else f"({notes.setdefault(outcome, len(notes) + 1)})", []).append(family)
    (most, _), *others = sorted(said.items(), key=lambda one: -len(one[1]))
    return "; ".join([most, *(f"{_called(which)}: {what}" for what, which in others)])


def _called(families: Sequence[str]) -> str:
    return "fused" if tuple(families) == FUSED else ", ".join(families)


def without_names(sentence: str, row: str = "") -> str:
    """Returns a sentence with "…" in the place of the layers that it names, and of its row's method.

    Example:
        >>> without_names("natively a.0.qkv is the layers b.0.to_q, b.0.to_k, b.0.to_v in one, and only so")
        'natively … is the layers … in one, and only so'
        >>> without_names("PEFT has no Bottleneck", "bottleneck")
        'PEFT has no …'
    """
    plain = re.sub(r"\w+(?:\.\w+){2,}", "…", sentence)
    plain = re.sub(r"…(?:(?:, | and )…)+", "…", plain)
    plain = re.sub(r"\btheir [\w, ]+ differ\b", "their … differ", plain)
    method = METHODS.get(row.partition(",")[0])
    return plain if method is None else re.sub(rf"\b{method.__name__}\b(?!\()", "…", plain)
