"""The forty checks that a reader and writer of adapter files is held to: which test is each one's.

A test says ``Check N:`` in its docstring, or ``Checks N and M:``; this is the list of what the checks are, and the
proof that each has a test. What differs from the list as it was drawn up stands beside its number.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

CHECKS = {
    1: "tensors of every type, without axes and without numbers come back to the byte, in the library's order",
    2: "two writes are one file; the header is a multiple of 8 long and begins with the metadata",
    3: "metadata that is no text is refused",
    4: "slices of one tensor are saved each by itself",
    5: "headers of other writers say the same",
    6: "alpha in every type and shape; kept when written",
    7: "no alpha is a scale of 1; alpha 0 changes nothing, with a note (sd-scripts alone takes it for the rank)",
    8: "rank-stabilised scale, anchored alpha_pattern",
    9: "a pattern that matches nothing is named",
    10: "a scale worked into factors is exact or its error is said",
    11: "alpha in diffusers' metadata counts",
    12: "alphas of each layer are kept, and brought to one where layers are one",
    13: "a convolution's pair is two convolutions",
    14: "a Tucker core is three convolutions",
    15: "LoHa is a pair of the square of its rank (Khatri-Rao)",
    16: "LoKr is a Kronecker product; its parts are taken as they are",
    17: "LoKr of two whole parts has the scale 1",
    18: "DoRA's axis by its shape; PEFT's spelling and back",
    19: "GLoRA's two layouts by their shapes",
    20: "norms, whole differences, IA3 and OFT are merged too: nothing is unsupported there, and so nothing is listed",
    21: "282 and 794 layers of UNets by distinct names and back",
    22: "the first upsampler of SD1 and of SDXL",
    23: "the second downsampler",
    24: "CLIP's names with and without text_model; written with it",
    25: "PEFT folders of CLIP with and without text_model",
    26: "SDXL in LDM's and in diffusers' names",
    27: "192 + 72, 722 + 72 + 192, 304, 282, 794, 144 + 48 layers",
    28: "fused to split, dense, and back",
    29: "split to fused, block-diagonal, and back",
    30: "split_qkv of sd-scripts is noted (there is no switch that corrects it: the file does not say what was meant)",
    31: "the last norm's halves: B and the bias alone, Flux.2 included",
    32: "the detection list, a file per row; mixed files",
    33: "whole differences and biases of Wan's files (.diff, .diff_b)",
    34: "any number of blocks",
    35: "textual inversion in all its files",
    36: "cloneofsimo's list of 288 tensors",
    37: "MLX and GGUF",
    38: "two equal LoRAs at a half each are that LoRA",
    39: "TIES, breadcrumbs, Model Stock, SLERP, DELLA by numbers",
    40: "hashes of the payload; Dynamic ranks",
}
LATER: dict[int, str] = {}
"""Checks without a test, and why."""


def said(text: str) -> Iterator[int]:
    """The numbers of the checks that a docstring names.

    >>> [*said("Checks 22 and 23: both."), *said("Check 5: that."), *said("no check 7b")]
    [22, 23, 5]
    """
    for numbers in re.findall(r"\b[Cc]hecks? ((?:\d+(?:, | and )?)+)\b", text):
        yield from map(int, re.findall(r"\d+", numbers))


@functools.cache
def named() -> dict[int, list[str]]:
    """Check -> its tests."""
    found: dict[int, list[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        for node in (
            ast.walk(ast.parse(text)) if file != Path(__file__) and re.search(r"heck \d|hecks \d", text) else ()
        ):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in said(ast.get_docstring(node) or ""):
                    found.setdefault(number, []).append(f"{file.relative_to(TESTS)}::{node.name}")
    return found


@pytest.mark.parametrize("number", CHECKS)
def test_each_check_has_a_test(number):
    assert (number in named()) != (number in LATER), f"{number}: {CHECKS[number]}"


def test_no_test_names_a_check_that_there_is_not():
    assert named().keys() <= CHECKS.keys() == set(range(1, 41))
