"""Prompts that stand for many: variants, wildcard files, what is drawn, and all there are."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from studio.errors import BadConfig, BadFile, UnknownName
from studio.pipelines import every_prompt
from studio.pipelines.prompting.wildcards import Wildcards


@pytest.fixture
def folder(tmp_path):
    texts = {
        "animal": "# animals\ntiger\n\n2::red panda\n__bird__\n",
        "bird": "{blue|green} parrot\nowl\n",
        "style/ink": "ink style\n",
        "ring": "__rong__\n",
        "rong": "a __ring__\n",
        "empty": "# nothing\n",
        "broken": "fine\n{a|b\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("t\xefger".encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "all_of_them"),
    [
        ("a dog", ["a dog"]),
        ("a {red|blue} dog", ["a red dog", "a blue dog"]),
        ("{a|b} {1|2}", ["a 1", "a 2", "b 1", "b 2"]),
        ("a {|big }dog", ["a dog", "a big dog"]),
        ("{a {x|y}|b}", ["a x", "a y", "b"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{1-2$$ and $$a|b|c}", ["a", "b", "c", "a and b", "a and c", "b and c"]),
        ("{0-1$$a}", ["", "a"]),
        ("{0::a|3::b}", ["b"]),
        ("{[a|b]|c}", ["[a|b]", "c"]),
        (r"\{a|b\} \__x__", [r"\{a|b\} \__x__"]),
        ("<dog:{0.5|1}>", ["<dog:0.5>", "<dog:1>"]),
        ("a __bird__", ["a blue parrot", "a green parrot", "a owl"]),
        ("__animal__", ["tiger", "red panda", "blue parrot", "green parrot", "owl"]),
        ("__style/ink__, __style/ink__", ["ink style, ink style"]),
        ("snake_case a__b", ["snake_case a__b"]),
    ],
)
def test_all_prompts_that_one_stands_for(folder, prompt, all_of_them):
    assert every_prompt(prompt, folder) == all_of_them
    drawn = {Wildcards(folder).resolve(prompt, seed) for seed in range(60)}
    assert drawn == set(all_of_them)


def test_what_is_drawn_depends_on_seed_and_prompt_alone(folder):
    prompt = "__animal__ on {red|blue|green}, {2$$a|b|c|d}"
    first = [Wildcards(folder).resolve(prompt, seed) for seed in range(20)]
    held = Wildcards(folder)
    assert [held.resolve(prompt, seed) for seed in reversed(range(20))] == first[::-1]
    assert len(set(first)) > 8
    # the numbers stand for good: pictures are made again from them
    assert [Wildcards().resolve("{a|b|c|d|e|f}", seed) for seed in range(8)] == list("dffbabed")


def test_weights_are_kept():
    wildcards = Wildcards()
    seen = Counter(wildcards.resolve("{3::a|b|0::c}", seed) for seed in range(4000))
    assert set(seen) == {"a", "b"} and abs(seen["a"] / 4000 - 0.75) < 0.03
    pairs = Counter(wildcards.resolve("{2$$a|b|c}", seed) for seed in range(3000))
    assert all(abs(count / 3000 - 1 / 3) < 0.04 for count in pairs.values()) and len(pairs) == 3


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ("a {b|c", BadConfig, "nothing closes the '{' at character 3, before 'b|c'"),
        ("a }b", BadConfig, "the '}' at character 3, before 'b' closes nothing"),
        ("{3$$a|b}", BadConfig, "3 of 2 options cannot be taken"),
        ("{2-1$$a|b}", BadConfig, "2-1 of 2 options cannot be taken"),
        ("{-1::a|b}", BadConfig, "has the weight -1; a weight is a number from 0 on"),
        ("{0::a}", BadConfig, "of 0 options cannot be taken"),
        ("__birt__", UnknownName, "has no birt.txt; did you mean 'bird'?"),
        ("__../secret__", UnknownName, "asks for the wildcard file '../secret'"),
        ("__ring__", BadConfig, "the wildcard 'ring' holds itself: ring > rong > ring"),
        ("__empty__", BadConfig, "the wildcard file 'empty' has no line to choose"),
        ("__broken__", BadConfig, "line 2 of the wildcard file 'broken': nothing closes the '{' at character 1"),
        ("__latin__", BadFile, "latin.txt is not UTF-8"),
        ("{" * 101 + "a" + "}" * 101, BadConfig, "at most 100 brackets"),
        ("a" * 100_001, BadConfig, "a prompt has 100,001 characters: at most 100,000"),
        ("{a|b}" * 14, BadConfig, "makes 16,384: at most 10,000 prompts that one prompt makes"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, prompt, error, words):
    with pytest.raises(error, match=re.escape(words)) as refused:
        every_prompt(prompt, folder)
    assert len(str(refused.value)) < 500


def test_a_wildcard_without_a_folder_is_refused(tmp_path):
    with pytest.raises(BadConfig, match=r"asks for the wildcard file 'x', and no folder .* write \\__ for the"):
        Wildcards().resolve("__x__", 0)
    with pytest.raises(BadFile, match="there is no folder"):
        Wildcards(tmp_path / "nowhere")


def test_a_drawn_prompt_is_not_drawn_again(folder):
    for seed in range(10):
        drawn = Wildcards(folder).resolve(r"__animal__ {a|b} \{c\}", seed)
        assert Wildcards().resolve(drawn, seed + 1) == drawn
