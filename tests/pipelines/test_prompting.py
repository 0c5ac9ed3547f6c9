"""The prompt language in pictures: chunks, words that change, choices; in every family, and in what pictures say."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName
from studio.families import FAMILIES, open_base
from studio.pipelines import ImagePipeline, Wanted, regenerate
from studio.pipelines.batching import batches
from studio.pipelines.moment import Moment
from studio.pipelines.prompting.spoken import spoken
from studio.pipelines.reading import Reading
from studio.pipelines.remarks import Remark
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import BUILDERS, FAMILY, build

CHUNKED = [kind for kind in BUILDERS if FAMILIES[FAMILY[kind]].chunks]
LONG = "a photo of a dog, " * 12  # more than one chunk of 75 tokens
SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def bases():
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = open_base(build(kind))
        return made[kind]

    return get


@pytest.fixture(scope="module")
def emoji():
    return ImagePipeline.open("emoji")


def requested(base: Any, prompt: str, seed: int, negative: str = "a cat", steps: int = 2) -> Request:
    guidance = 3.0 if base.defaults.negative else 1.0
    return Request(
        prompt=prompt, negative=negative, seed=seed, steps=steps, guidance=guidance, embedded=base.defaults.embedded,
        **SIZE,
    )  # fmt: skip


def alone_and_together(kind: str, prompts: list[str], negative: str = "a cat") -> None:
    """Each picture is the same one by one as in a batch: pixels in [0, 1] within 1e-5.

    In float64: the tiny networks of random weights make more of the last bits of float32 than 1e-5.
    """
    base = open_base(build(kind), dtype=torch.float64)
    asked = [requested(base, prompt, seed, negative) for seed, prompt in enumerate(prompts)]
    assert list(batches(base, asked, len(asked))) == [list(range(len(asked)))]
    together, _ = draw(base, asked, rows=len(asked))
    for place, request in enumerate(asked):
        alone, _ = draw(base, [request], rows=1)
        assert (alone[0] - together[place]).abs().max() / 2 < 1e-5


@pytest.mark.parametrize("kind", CHUNKED)
def test_chunks_are_the_same_one_by_one_as_in_a_batch(kind):
    alone_and_together(kind, [LONG, f"a (cat:1.4) BREAK {LONG[:-30]}", f"[{LONG}:a cat:0.5]"])


@pytest.mark.parametrize("kind", BUILDERS)
def test_words_that_change_are_the_same_one_by_one_as_in_a_batch(kind):
    # the rows of a batch change at different steps, to words of as many tokens
    alone_and_together(kind, ["a [dog:cat:0.5]", "a [cat|dog]", "a [sks:dog:1]"], "[dog:cat:1]")


def test_equal_rows_give_equal_bits_whatever_stands_beside(emoji):
    how: dict[str, Any] = {"seeds": 2, "steps": 3, "batch_size": 3, "negative": "{dark|night}"}
    prompts = [
        "(tiger:1.4) on [blue]",
        "[tiger|rocket] on red",
        "{pizza|apple} [on blue::0.5]",
        "a tiger BREAK (red:0.5)",
    ]
    together = emoji.generate(prompts, **how)
    for prompt, image in zip(prompts, together, strict=True):
        assert emoji.generate(prompt, **how)[0].tobytes() == image.tobytes()
    assert [image.tobytes() for image in emoji.generate(prompts[::-1], **how)[::-1]] == [i.tobytes() for i in together]


@pytest.mark.parametrize("kind", BUILDERS)
def test_words_change_where_they_are_told_to(bases, kind):
    base = bases(kind)
    drawn = {
        text: draw(base, [requested(base, text, 1)], rows=1)[0]
        for text in ("a dog", "a cat", "a [dog:cat:0.0]", "a [dog:cat:2]", "a [dog:cat:0.5]")
    }
    assert torch.equal(drawn["a [dog:cat:0.0]"], drawn["a cat"])
    assert torch.equal(drawn["a [dog:cat:2]"], drawn["a dog"])
    assert not any(torch.equal(drawn["a [dog:cat:0.5]"], drawn[one]) for one in ("a dog", "a cat"))


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_long_negative_fills_the_prompt_up(bases, kind):
    base = bases(kind)
    asked = requested(base, "a dog", 0, negative=LONG)
    said = spoken(base, asked)
    assert said.length == 154 and said.at(0, negative=False).length == 154
    conditioning = Reading(base, [asked]).at(Moment(0, 4, 1.0))
    assert conditioning.tokens.shape[:2] == (2, 154) and conditioning.mask is None
    assert not torch.equal(conditioning.tokens[0], conditioning.tokens[1])
    # with other lengths pictures do not share a batch
    others = [asked, requested(base, "a dog", 1), requested(base, LONG, 2)]
    assert list(batches(base, others, 3)) == [[0, 2], [1]]


def test_texts_are_encoded_once(emoji, monkeypatch):
    calls: list[tuple[str, ...]] = []
    family = emoji.base.family

    def encode_text(pipe: Any, prompts: Any, negative: bool) -> Any:
        calls.append(tuple(map(str, prompts)))
        return family.encode_text(pipe, prompts, negative)

    base = replace(emoji.base, family=replace(family, encode_text=encode_text))
    draw(base, [requested(base, "[tiger|rocket] on blue [sky::0.5]", 0, steps=8)], rows=1)
    assert len(calls) == len(set(calls)) == 5


@pytest.mark.parametrize(("steps", "order"), [(4, 1), (4, 2), (7, 2)])
def test_a_step_of_two_calls_says_the_same_in_both(emoji, steps, order):
    base = emoji.base
    reading = Reading(base, [requested(base, "[tiger|rocket]", 0, steps=steps)])
    of = steps if order == 1 else 2 * steps - 1
    said = ["tiger" in str(reading._said(Moment(number, of, 1.0), negative=False)[0]) for number in range(of)]
    wanted = [step % 2 == 0 for step in range(steps) for _ in range(order)][:of]
    assert said == wanted


def test_a_change_is_seen_in_the_picture(emoji):
    """The background is what it is called in the first steps."""
    for when, blue in (("0.0", True), ("0.25", True), ("1.0", False)):
        (image,) = emoji.generate(f"tiger on a [red:blue:{when}] background", seeds=1, steps=8)
        corner = np.asarray(image, float)[:6, :6].mean((0, 1))
        assert (corner[2] > corner[0] + 60) if blue else (corner[0] > corner[2] + 60)


def test_emoji_reads_prompts_of_any_length(emoji):
    (image,) = emoji.generate("tiger, " * 1500, seeds=0, steps=1)
    assert image.size == (64, 64)


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in CHUNKED])
def test_what_other_encoders_cannot_read_whole_is_refused_before_anything_is_drawn(bases, kind):
    pipe = ImagePipeline(bases(kind))
    long = "a photo of a dog, " * 550  # 10,000 characters
    with pytest.raises(DoesNotFit, match=r"tokens .*shorten it") as refused:
        pipe.generate_iter(["a dog", f"[{long}:a cat:0.5]"], steps=2, **SIZE)
    assert len(str(refused.value)) < 800


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("tiger (on blue", r"nothing closes the '\(' at character 7"),
        ("tiger :)", r"closes nothing; write \\\) for the character"),
        ("{tiger|rocket", "nothing closes the '{' at character 1"),
        ("__animal__", "no folder of such files is given"),
        ("[tiger:rocket:1.5]", "has the step 1.5"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_drawn(emoji, prompt, words):
    for how in ({"prompt": ["tiger", prompt]}, {"prompt": "tiger", "negative": prompt}):
        with pytest.raises(BadConfig, match=words):
            emoji.generate_iter(**how, steps=1)
    with pytest.raises(BadConfig, match=words):
        emoji.make([Wanted(prompt="tiger"), Wanted(prompt=prompt)])


def test_what_a_picture_says_makes_it_again(emoji, tmp_path):
    (tmp_path / "thing.txt").write_text("tiger\nrocket\npizza\n")
    prompt, negative = "(__thing__:1.2) on [{red|blue}:white:0.5]", "{dark|dim} BREAK night"
    images = emoji.generate(prompt, negative=negative, seeds=range(4), steps=4, wildcards=tmp_path)
    for image in images:
        content = json.loads(image.info["studio"])
        assert (content["prompt"], content["negative"]) == (prompt, negative)
        thing, colour = content["resolved"].removeprefix("(").replace(":1.2) on [", " ").split(":")[0].split()
        assert thing in ("tiger", "rocket", "pizza") and colour in ("red", "blue")
        written = image.info["parameters"].split("\n")
        assert written[0] == content["resolved"]
        assert written[1] == f"Negative prompt: {content['resolved_negative']}"
        again = regenerate(image, pipe=emoji)  # without the folder
        assert again.tobytes() == image.tobytes() and again.info == image.info
    assert len({image.info["parameters"].split("\n")[0] for image in images}) > 1
    # what is drawn for a picture depends on its own seed and prompt alone
    (alone,) = emoji.generate(prompt, negative=negative, seeds=2, steps=4, wildcards=tmp_path)
    assert alone.tobytes() == images[2].tobytes()


def test_pictures_of_older_studios_are_made_again_as_they_were_drawn(emoji):
    (image,) = emoji.generate(r"a \(small\) tiger, \[red\] \{x\}", negative=r"\(\(night\)\)", seeds=1, steps=2)
    content = json.loads(image.info["studio"])
    del content["resolved"], content["resolved_negative"]
    content |= {"prompt": "a (small) tiger, [red] {x}", "negative": "((night))"}
    image.info["studio"] = json.dumps(content)
    assert regenerate(image, pipe=emoji).tobytes() == image.tobytes()


def test_one_seed_gives_one_choice_to_every_pass(emoji):
    (image,) = emoji.generate("{tiger|rocket|pizza|apple}", seeds=None, steps=1)
    content = json.loads(image.info["studio"])
    (again,) = emoji.generate("{tiger|rocket|pizza|apple}", seeds=content["seed"], steps=1)
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", BUILDERS)
def test_what_a_family_does_not_heed_is_said(bases, kind):
    pipe, family = ImagePipeline(bases(kind)), FAMILIES[FAMILY[kind]]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe.generate("a (dog:1.2) AND a cat BREAK [sks:9]", steps=2, guidance=1.0, **SIZE)
    texts = [str(one.message) for one in said if one.category is Remark]
    wanted = {
        "does not weigh words": not family.emphasis, "BREAK in": not family.chunks, "AND in": True,
        "changes at step 9 of 2, which never comes": True,
    }  # fmt: skip
    assert {words: any(words in text for text in texts) for words in wanted} == wanted


@pytest.mark.parametrize("folder", [3, [1], "nowhere", b"x"])
def test_what_is_no_folder_of_wildcards_is_refused(emoji, folder):
    with pytest.raises(BadFile, match="wildcards"):
        emoji.generate("{a|b}", steps=1, wildcards=folder)


def test_tags_of_a_wildcard_act_and_unknown_ones_are_refused(emoji, tmp_path):
    (tmp_path / "who.txt").write_text("tiger <dgo:0.5>\n")
    with pytest.raises(UnknownName, match="'dgo', which is not loaded"):
        emoji.generate("__who__", steps=1, wildcards=tmp_path)
