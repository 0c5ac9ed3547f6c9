"""Adapter tags in prompts."""

from __future__ import annotations

import pytest

from studio.adapters import Strength
from studio.errors import BadConfig, UnknownName
from studio.pipelines.prompting.tags import check_changes, parse_prompt

KNOWN = ["dog", "ink", "3d-look", "lora"]


@pytest.mark.parametrize(
    ("prompt", "text", "blend"),
    [
        ("a photo of sks dog", "a photo of sks dog", None),
        ("a photo of sks dog <dog:0.8>", "a photo of sks dog", {"dog": 0.8}),
        ("<dog:0.8> a photo", "a photo", {"dog": 0.8}),
        ("a <dog:0.8> photo <ink:-1.5>, red", "a photo, red", {"dog": 0.8, "ink": -1.5}),
        ("a photo <dog>", "a photo", {"dog": 1.0}),
        ("a photo <lora:dog:0.8>", "a photo", {"dog": 0.8}),
        ("a photo <lora:dog>", "a photo", {"dog": 1.0}),
        ("a photo <3d-look:1e-1>", "a photo", {"3d-look": 0.1}),
        ("an adapter called lora <lora:0.5>", "an adapter called lora", {"lora": 0.5}),
        ("<lora:dog:0.3:0.8> x", "x", {"dog": Strength(text_encoder=0.3, unet=0.8)}),
        ("<lora:dog:0.5:unet=0.8> x", "x", {"dog": Strength(text_encoder=0.5, unet=0.8)}),
        ("<dog:unet=0.8,text_encoder=0.3> x", "x", {"dog": Strength(unet=0.8, text_encoder=0.3)}),
        ("<dog:0.5:te=0.4> x", "x", {"dog": Strength(0.5, text_encoder=0.4)}),
        ("<dog:unet=0.8:te=0.3> x", "x", {"dog": Strength(unet=0.8, text_encoder=0.3)}),
        ("<dog:0@0,1@0.4> x", "x", {"dog": Strength(schedule=[(0, 0), (0.4, 1)])}),
        ("<dog:0.5:1@0,-1@1:te=0.4> x", "x", {"dog": Strength(0.5, schedule=[(0, 1), (1, -1)], text_encoder=0.4)}),
        ("<lora:dog:0.5@0, 1@0.4 ,0@1> x", "x", {"dog": Strength(schedule=[(0, 0.5), (0.4, 1), (1, 0)])}),
        ("<lora:dog:0.3:0.8:0@0,1@1> x", "x", {"dog": Strength(text_encoder=0.3, unet=0.8, schedule=[(0, 0), (1, 1)])}),
        ("< dog : 0.8 > x", "x", {"dog": 0.8}),
        ("i <3 dogs, 2 < 3", "i <3 dogs, 2 < 3", None),
        (r"\<dog:0.8\> is text", "<dog:0.8> is text", None),
        ("", "", None),
    ],
)
def test_a_prompt_is_taken_apart(prompt, text, blend):
    found = parse_prompt(prompt, KNOWN)
    assert found.text == text
    assert found.blend == blend


def test_an_adapter_that_is_not_loaded_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"'dgo', which is not loaded; did you mean 'dog'\? \(loaded: 3d-look, dog"):
        parse_prompt("a photo <dgo:0.8>", KNOWN)
    with pytest.raises(UnknownName, match="none is loaded"):
        parse_prompt("a photo <lora:dog:0.8>", [])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a photo <dog:0.8", "not closed"),
        ("a photo <dog:0.8 and <ink:0.5>", "not closed"),
        ("a photo <dog:>", "'' is not a number"),
        ("a photo <dog:strong>", "'strong' is not a number"),
        ("a photo <dog:nan>", "'nan' is not a number"),
        ("a photo <dog:inf>", "'inf' is not a number"),
        ("a photo <dog:1:2>", "too many numbers"),
        ("a photo <lora:dog:1:2:3>", "too many numbers"),
        ("a photo <dog:vae=1>", "'vae' is no component"),
        ("a photo <dog:unet=>", "'' is not a number"),
        ("<dog:1@0.5,0@0.2>", "the schedule goes backwards from 0.5 to 0.2"),
        ("<dog:1@2>", "has the place 2"),
        ("<dog:1@x>", "'x' is not a number"),
        ("<dog:nan@0>", "'nan' is not a number"),
        ("<dog:1,0@0>", "a schedule is strength@part"),
        ("<dog:0@0:1@1>", "a schedule is strength@part,strength@part, once"),
        ("<dog:lbw=OUTALL>", "this model has no blocks to weigh"),
        ("a photo <>", "the name of an adapter"),
        ("i <3 you >", "the name of an adapter"),
        ("<dog:1> a photo <lora:dog:1>", "twice"),
        ("<dog:unet=1,unet=2>", "'unet' has two numbers"),
        ("<dog:te=1,text_encoder=2>", "'text_encoder' has two numbers"),
        ("<lora:dog:te=0.3:te=0.5>", "'text_encoder' has two numbers"),
        ("a photo \ud800", "half a surrogate pair"),
        (b"a photo", "a prompt is a text"),
    ],
)
def test_a_malformed_tag_is_refused(prompt, reason):
    with pytest.raises(BadConfig, match=reason):
        parse_prompt(prompt, KNOWN)


def test_block_weights_are_read_by_the_model():
    def blocks(name, said):
        if said != "OUTALL":
            raise BadConfig(f"no {said}")
        return {f"{name}.up_blocks.*": 0.5}

    found = parse_prompt("<dog:0.8:lbw=OUTALL:te=0> x", KNOWN, blocks=blocks)
    assert found.blend == {"dog": Strength(0.8, blocks={"dog.up_blocks.*": 0.5}, text_encoder=0)}
    with pytest.raises(BadConfig, match=r"the tag '<dog:lbw=INALL>' .* cannot be read: no INALL"):
        parse_prompt("<dog:lbw=INALL> x", KNOWN, blocks=blocks)
    with pytest.raises(BadConfig, match="stands there twice"):
        parse_prompt("<dog:lbw=OUTALL:lbw=OUTALL> x", KNOWN, blocks=blocks)


@pytest.mark.parametrize("prompt", ["[<dog>a:b:0.5]", "[a|b <dog:0.5>]", "[(a <dog>)::3]"])
def test_a_tag_that_would_not_change_is_refused(prompt):
    with pytest.raises(BadConfig, match="has a tag in brackets that change while it denoises"):
        check_changes(prompt, emphasis=True)
    check_changes("(a <dog>:1.2) [b:c:0.5] <ink>", emphasis=True)
