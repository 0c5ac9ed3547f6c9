"""Brackets in prompts: weights as A1111 computes them, words that change from step to step, refusals with a place."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import BadConfig
from studio.pipelines.prompting.brackets import script_of
from studio.pipelines.prompting.escaping import escape_prompt


def pieces(prompt: str, **how: bool) -> list[tuple[str, float]]:
    return [piece for part in script_of(prompt, **how).at(0, 1).parts for piece in part]


@pytest.mark.parametrize(
    ("prompt", "weights"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:.5)(b:-1)", [("a", 0.5), ("b", -1.0)]),
        ("((a))", [("a", 1.0 * 1.1 * 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("[[a]]", [("a", 1 / 1.1 * (1 / 1.1))]),
        ("((a:1.3):2)", [("a", 1.3 * 2)]),
        ("(a (b:1.5) c)", [("a ", 1.1), ("b", 1.5 * 1.1), (" c", 1.1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("time 12:30, 16:9", [("time 12:30, 16:9", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"a \\ b \o/", [(r"a \ b \o/", 1.0)]),
        (r"(a\:1.2)", [("a:1.2", 1.1)]),
        ("a | b", [("a | b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        (r"a \BREAK b", [("a BREAK b", 1.0)]),
        ("", []),
        # A1111's own example, its brackets closed
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))).",
            [
                ("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.1 * 1.1 * 1.1 * 1.1), (".", 1.0),
            ],
        ),
    ],
)  # fmt: skip
def test_weights_are_a1111s(prompt, weights):
    assert pieces(prompt) == weights


nested = st.recursive(
    st.text("ab ,", min_size=1, max_size=4),
    lambda inside: st.lists(
        st.one_of(
            inside, inside.map(lambda x: f"({x})"), inside.map(lambda x: f"[{x}]"),
            st.tuples(inside, st.sampled_from(["1.3", "0.5", "2"])).map(lambda pair: f"({pair[0]}:{pair[1]})"),
        ),
        max_size=3,
    ).map("".join),
    max_leaves=8,
)  # fmt: skip


def letter_by_letter(prompt: str) -> list[tuple[str, float]]:
    """The weight of every letter: the factors of the brackets around it, multiplied from the inside outwards."""
    found, around = [], []
    for place, sign in enumerate(prompt):
        if sign in "([":
            around.append(place)
        elif sign in ")]":
            start = around.pop()
            number = re.search(r":([\d.]+)\)$", prompt[start : place + 1])
            factor = 1 / 1.1 if sign == "]" else float(number[1]) if number else 1.1
            end = place - len(number[0]) + 1 if number else place
            found = [(at, letter, weight * (factor if at > start else 1.0)) for at, letter, weight in found if at < end]
        else:
            found.append((place, sign, 1.0))
    return [(letter, weight) for _, letter, weight in found]


@given(nested)
def test_the_weight_of_a_letter_is_the_product_of_its_brackets(prompt):
    assert [(letter, weight) for text, weight in pieces(prompt) for letter in text] == letter_by_letter(prompt)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("a (dog", "nothing closes the '(' at character 3, before 'dog'"),
        ("a [dog:cat:0.5", "nothing closes the '[' at character 3"),
        ("hello :)", r"the ')' at character 8, at the end closes nothing; write \) for the character"),
        ("(a]", "the ']' at character 3, at the end closes nothing, for the '(' at character 1"),
        ("(dog:1,2)", "has the weight '1,2'; write it with a point"),
        ("(dog:1.2.3)", "which is no number"),
        ("[dog:cat]", "has no step at its end"),
        ("[dog:1.2]", "has the step 1.2: give a part of the steps from 0.0 to 1.0, or a whole number"),
        ("[a:b:-3]", "has the step -3"),
        ("[a:b:c:0.5]", "has 3 texts, and"),
        ("[a|b:0.5]", "takes turns and has a number"),
        ("(" * 101 + "a" + ")" * 101, "at most 100 brackets of a prompt in one another"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(prompt, place):
    with pytest.raises(BadConfig, match=re.escape(place)) as refused:
        script_of(prompt)
    assert len(str(refused.value)) < 500


def said(prompt: str, steps: int) -> list[str]:
    script = script_of(prompt)
    return [str(script.at(step, steps)) for step in range(steps)]


@pytest.mark.parametrize(
    ("prompt", "ends"),  # as A1111's table: up to which step, counted from 1, what is said
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b::0.3] c", [(3, "a b c"), (10, "a  c")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:0.29]", [(2, "a"), (10, "b")]),
        ("[a:b:20]", [(10, "a")]),
        ("[a|(b:1.1)]", [(step, "ab"[(step - 1) % 2]) for step in range(1, 11)]),
        ("[fe|]male", [(step, ["female", "male"][(step - 1) % 2]) for step in range(1, 11)]),
        ("[fe|||]male", [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)]),
        ("fantasy [mountain:lake:0.25] [oak:tree:0.75][ in front::0.6][: behind:0.25] [bad:good:0.5]", [
            (2, "fantasy mountain oak in front bad"), (5, "fantasy lake oak in front behind bad"),
            (6, "fantasy lake oak in front behind good"), (7, "fantasy lake oak behind good"),
            (10, "fantasy lake tree behind good"),
        ]),
    ],
)  # fmt: skip
def test_words_change_at_a1111s_steps(prompt, ends):
    wanted = [next(text for end, text in ends if step <= end) for step in range(1, 11)]
    assert said(prompt, 10) == wanted


def test_the_changes_are_told():
    script = script_of("[a:b:0.5] [c::2] BREAK d")
    assert [(step, str(words)) for step, words in script.all(8)] == [(0, "a c d"), (2, "a d"), (4, "b d")]
    assert script.breaks and script.last == 2 and not script_of("a").breaks


def test_families_that_weigh_no_words_read_brackets_as_text():
    assert pieces("a (small:1.2) [big] dog :) ]", emphasis=False) == [("a (small:1.2) [big] dog :) ]", 1.0)]
    assert str(script_of(r"\(a\) [b:c:0.5] (", emphasis=False).at(0, 2)) == "(a) b ("


@pytest.mark.parametrize(
    "text", ["a (small) dog", r"back\slash \(", "[x] {a|b} __init__ BREAK ((", "time 12:30", ":) a|b", "i <3 you"]
)
def test_an_escaped_text_is_read_as_it_stands(text):
    from studio.pipelines.prompting.wildcards import Wildcards

    escaped = escape_prompt(text)
    assert Wildcards().resolve(escaped, 0) == escaped
    assert str(script_of(escaped).at(0, 1)) == text
    assert str(script_of(escaped, emphasis=False).at(0, 1)) == text


def test_tags_are_tags_in_an_escaped_text():
    assert escape_prompt(r"a (b) <dog:0.5> \<c\>") == r"a \(b\) <dog:0.5> \<c\>"


@pytest.mark.parametrize("part", ["(a:1.2) ", "[a:b:0.5], ", "BREAK a ", "a" * 8 + " ", "\\( ", "\\ ", " "])
def test_ten_thousand_characters_are_read_in_linear_time(part):
    def seconds(length: int) -> float:
        prompt = part * (length // len(part))
        started = time.process_time()
        script_of.__wrapped__(prompt).at(0, 20)
        return time.process_time() - started

    seconds(1_000)
    assert min(seconds(40_000) for _ in range(2)) < 16 * max(min(seconds(10_000) for _ in range(3)), 2e-3)
