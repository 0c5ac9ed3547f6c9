"""A1111's text: what it reads of ours, and what we read of its."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest

from studio.pipelines.metadata import AdapterUse
from studio.pipelines.parameters import parameters_text, read_parameters

# A1111's own expression for the last line of the text (modules/infotext_utils.py)
A1111_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FIELDS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7.5, "Seed": 1}
HARD = [
    "a, b", "a: b", 'a "b" c', '"', '"a"', "a\nb", "\\", "C:\\models\\a", 'a\\"', "Steps: 3, Seed: 4", ' a ', "", ",",
    ":", "a\r\nb", "Negative prompt: x", "ünïcödé 火", '{"a": [1, "b, c"]}', "\t", "'", "🔥, 🔥",
]  # fmt: skip


def as_a1111_reads(line: str) -> dict[str, str]:
    """Its two steps: the expression's pairs, and a value in quotation marks read as JSON, or left."""
    found = {}
    for key, value in A1111_PAIR.findall(line):
        if value[:1] == '"' and value[-1:] == '"':
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        found[key] = value
    return found


def text_of(**fields):
    words = {"text": "a dog", "negative": "", "adapters": [], "encoders": ["text_encoder"], "denoiser": "unet"}
    return parameters_text(fields={**FIELDS, **fields}, **words)


@pytest.mark.parametrize("value", HARD)
def test_any_value_is_read_as_it_was_by_a1111_and_here(value):
    text = text_of(Model=value, Version="v1")
    assert text.count("\n") == 1, "a value never breaks the line of fields"
    expected = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7.5", "Seed": "1", "Model": value, "Version": "v1"}
    assert as_a1111_reads(text.split("\n")[1]) == expected
    assert dict(read_parameters(text).fields) == expected


@pytest.mark.parametrize(
    "line",
    [
        'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Model: "a, \\"b\\"", Size: 512x512',
        'Steps: 20, ControlNet 0: "Module: canny, Model: x [1], Weight: 1", Lora hashes: "a: 0123, b: 01", Seed: 1',
        'Steps: 20, Seed: 1, VAE: "C:\\models\\x, y", Clip skip: 2',
        'Steps: 20, Seed: 1, VAE: "open, Clip skip: 2',
        "Steps:20,Seed:1,Size:1x1",
        "nothing, Steps: 20, Seed: 1, ENSD: 31337,",
    ],
)
def test_lines_of_a1111_are_read_as_it_reads_them(line):
    theirs = as_a1111_reads(line)
    assert len(theirs) >= 3
    assert dict(read_parameters(f"a dog\n{line}").fields) == theirs


def test_prompts_have_lines_and_fields_need_three():
    text = "a dog,\nred: dark, big: x\nNegative prompt: cat,\nsmall\nSteps: 2, Seed: 1, Size: 8x8"
    read = read_parameters(text)
    assert (read.prompt, read.negative) == ("a dog,\nred: dark, big: x", "cat,\nsmall")
    alone = read_parameters("a dog\nred: dark, big: x")
    assert (alone.prompt, alone.negative, dict(alone.fields)) == ("a dog\nred: dark, big: x", "", {})
    assert read_parameters("") == read_parameters("\n \n")
    assert read_parameters("Steps: 2, Seed: 1, Size: 8x8").prompt == ""


def test_an_adapter_whose_file_would_break_a_tag_goes_by_its_name():
    for stem in ("a:b", "a>b", "<a", "a,b"):
        use = AdapterUse(name="dog", strength=0.5, file=f"{stem}.safetensors", lora_hash="ab" * 32)
        words = {"text": "x", "negative": "", "fields": {}, "encoders": [], "denoiser": "unet"}
        assert parameters_text(adapters=[use], **words) == 'x <lora:dog:0.5>\nLora hashes: "dog: abababababab"'


@pytest.mark.parametrize(
    "text",
    [text * 200_000 for text in ("a", "a: ", ", ", '"', "\n", " ", "a: b,")] + ['a: "' + "\\" * 200_000],
)
def test_a_long_text_takes_no_long_time(text):
    start = time.process_time()
    read_parameters(text)
    assert time.process_time() - start < 2
